"""Quality and speed of a PIPO model beside its base, and whether its paths agree."""
