"""Secure aggregation: the aggregator learns the sum of the sites' tallies and nothing else about any of them.

After Bonawitz et al. 2017 ("Practical secure aggregation", the variant against an active server) and, for over 50
sites, the sparse graph of Bell et al. 2020. State machines without I/O, clock or random generator: a site's steps are
in `site`, what it keeps in `memory`, the aggregator's side in `server`, the messages in `messages`, their bytes in
`canonical`, what both check in `checks`, thresholds and graph in `rules`. `fixed_point` turns updates into cells.

Every site has one secret seed a session; from it follow two X25519 keys (one for boxes, one for masks), the seed b of
its self-mask and all its choices. n sites, threshold T with 2T > n + accomplices (`rules`).

    1  site → middle   Advertisement   both public keys, signed by the certificate's key and bound to the session: plan
                                       fingerprint, stage, window, attempt, words, modulus, tolerated losses and lies
    2  middle → sites  Roster          all advertisements; every site checks every signature and takes one roster
    3  site → middle   Dealing         Shamir shares of b and of the mask key, boxed for each holder, with the digest of
                                       every share; whom it dealt to is signed and drawn by itself
    4  middle → site   Delivery        the circle (all signed deals, the graph of masks) and this site's boxes
    5  site → middle   masked words    x_i + PRG(b_i) + Σ_{j>i} PRG(k_ij) - Σ_{j<i} PRG(k_ij), with a signed Receipt
                                       that binds roster, circle, windows and SHA-256. Pair keys: X25519 → HKDF-SHA256
                                       salted by the circle → AES-256-CTR
    6  middle → sites  Survivors       the receipts of all whose words are to be added
    7  site → middle   Vote            signed, one a site and session, for exactly these survivors
    8  middle → sites  Votes           T equal votes: no other set can have T
    9  site → middle   Reveal          for a survivor the share of b, for a lost site the share of its mask key
       middle          joins them, takes the masks off the sum: Σ x_i mod 2^32 or 2^64, bit for bit the plain sum

A site lost before 3 is not in the circle; lost before 6 it is no survivor, and its pair masks are taken off with its
revealed key; lost later its words are in the sum. With fewer than T sites at any message nothing is revealed.

What each learns. The aggregator: who takes part, who is lost when, who shares a mask with whom, and the sum over the
survivors (at least T). A site: the names and public keys of the others, and who survives. Neither more, as long as at
most `accomplices` sites side with the aggregator. Not protected: the sum itself (noise is another part), a site that
sends false counts, and a session that the aggregator simply stops. Whether a name is a real hospital is for the
certificates: an aggregator that issues them can invent sites, so a site is given the identities it is ready to be
summed with, and its policy should name them or pin their keys.

The same counts never go into two sums (`site.fix`): else a finished session could be called failed, run again without
one site, and subtracted. Giving up is a vote too (for no survivors), and only T equal votes set a site's counts free.
"""
