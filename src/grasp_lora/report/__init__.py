"""What is read from run folders and records only: tables, plots, pages."""
