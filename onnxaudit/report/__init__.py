"""Reports: one object, shown as JSON, Markdown or text."""
