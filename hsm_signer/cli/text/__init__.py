"""What people read: facts as lines of text, and the same facts as JSON."""
