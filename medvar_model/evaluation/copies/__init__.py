"""Look for memorised training slices: an index, a match that sees through shifts, flips and turns, an audit with its page."""
