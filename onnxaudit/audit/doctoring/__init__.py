"""What works on this machine, what does not, and what to install. Imports nothing that may itself be broken."""
