"""What turns the course into pages, badges and tables, and runs it."""
