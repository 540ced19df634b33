"""Evaluations turn annotated images and arms into tables of what a register is worth downstream."""
