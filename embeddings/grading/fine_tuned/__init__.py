"""Graders that are text models fine-tuned on people's grades."""
