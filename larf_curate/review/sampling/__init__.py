"""What to review under a budget, and how many harmful rows are left among the unread.

Each push by expected harm is a *stage*, whose population is all rows that are unread by then. Its *chosen* rows are
those in the queue and those most worth a look, with inclusion probability 1; of the n others, the first m in a random
order are sent too, each with probability m / n. Records carry their places, so that the estimate needs the server only.

Only random rows that are read without a gap from the start of their order count as a sample, and the interval holds for
every length of it at once: neither the order in which people read nor when they look or stop makes it invalid.
"""
