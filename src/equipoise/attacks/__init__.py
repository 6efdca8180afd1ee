"""Images moved within a small ball so that a network errs, and how often that succeeds."""
