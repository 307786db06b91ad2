"""Process reward models: formats, heads, training, scoring, aggregation."""
