"""The use cases: craft, calibrate, check, bench. They print nothing; progress and notes go to what the caller passes in."""
