"""What a program is: traced once, as a graph of equations over values, with one row of facts per primitive."""
