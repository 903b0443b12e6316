"""How the themes' science runs on Ray."""
