"""Training data from questions: a teacher's answers, checked, as an SFT set and as prompts for distillation."""
