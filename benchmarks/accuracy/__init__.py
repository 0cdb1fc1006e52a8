"""How exact: errors of every network by precision."""
