"""Training: recipes, the trainer, and the stages."""
