"""A small project for one data folder: configs that fit it, the commands to run, and what they will take."""
