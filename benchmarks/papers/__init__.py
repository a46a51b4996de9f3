"""What the papers published: their figures, and the findings that are tested here."""
