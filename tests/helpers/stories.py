"""Texts that tiny models learn."""

STORY = "".join(
    f"On day {n} the old sailor {('walked', 'ran', 'swam')[n % 3]} to the shiny sea, and the sun {'rose' * (n % 2)}"
    f"{'set' * (1 - n % 2)} over {n * 7 % 90} quiet boats.\n"
    for n in range(400)
)
