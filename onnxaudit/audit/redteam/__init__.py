"""How an audit stands up to an accuser who cheats and to a party who hides."""
