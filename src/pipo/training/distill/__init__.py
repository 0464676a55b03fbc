"""On-policy distillation: the student's own answers, compared with an uncompressed teacher."""
