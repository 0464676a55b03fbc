"""Folders in and out: bases, PIPO folders, the authors' layout, the shipped model."""
