"""Methods side by side: recipes × seeds on equal data, feedback and decoding, and the table that comes of it."""
