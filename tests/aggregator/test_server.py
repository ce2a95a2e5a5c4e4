"""The whole server: in this process over real TLS, and as a process that is started, killed and stopped."""


def test_smoke(running):
    print(running.aggregator.addresses)
    running.join("north")
    running.join("ada", "operator")
    running.revoke("north")
