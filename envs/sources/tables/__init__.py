"""Rows where they lie: files of every type, opened when a row is asked for, and tables of rows."""
