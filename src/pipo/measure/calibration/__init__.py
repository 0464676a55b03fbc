"""`pipo calibrate`: which threshold, and is the confidence what it says."""
