"""The two engines side by side: equal first, then timed."""
