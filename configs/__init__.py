"""The configuration: its schema, how YAML becomes objects, and the shipped files."""
