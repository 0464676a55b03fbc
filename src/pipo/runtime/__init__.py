"""What every long run needs: files that a kill does not tear, provenance, strict recipes, progress, a sandbox."""
