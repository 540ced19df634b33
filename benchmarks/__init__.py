"""What interpretability costs, against the plain model: `make bench`."""
