"""Training: recipes, tasks, the loop that trains them, and the models that it makes."""
