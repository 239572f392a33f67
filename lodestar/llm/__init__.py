"""Language models that are asked for text, wherever they are: a port, its adapters, and answers that are kept."""
