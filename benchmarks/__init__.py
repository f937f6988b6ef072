"""Speed of pinnlib beside other libraries. Optional, and never imported by the book."""
