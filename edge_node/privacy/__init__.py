"""Privacy at the site: what a unit may add, what is spent for good, and the noise that goes over a tally.

UnitCounter → Ledger.spend → noised → Outbox.seal
"""
