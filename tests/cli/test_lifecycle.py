"""pause, resume, stop, start, touch, timeout, and keys with terms."""

from tests.cli.support import Ctl


def test_a_sandbox_is_put_to_sleep_and_woken(ctl: Ctl) -> None:
    sandbox = ctl.text(
        "create", "--name", "sleeper", "--auto-resume", "--idle-timeout", "1h", "--on-idle", "stop"
    ).strip()
    for verb, status in (("pause", "paused"), ("resume", "running"), ("stop", "stopped"), ("start", "running")):
        assert ctl.text(verb, "sleeper").strip() == sandbox
        assert f" {status} " in ctl.text("ls")
    ctl.text("stop", "--grace", "1ms", sandbox)
    assert ctl.text("exec", sandbox, "--", "echo", "well") == "well\n"
    assert ctl.text("touch", sandbox).strip() == sandbox
    shown = ctl.text("inspect", sandbox)
    assert "3600 s, then stop" in shown
    assert "auto resume" in shown
    ctl.text("rm", sandbox)


def test_how_long_it_may_live_and_be_idle_can_be_changed(ctl: Ctl) -> None:
    sandbox = ctl.text("create", "--timeout", "1h", "--on-timeout", "pause").strip()
    view = ctl.json("timeout", sandbox, "2h", "--on-timeout", "stop")
    assert (view["on_timeout"], view["end_at"] is None) == ("stop", False)
    assert ctl.json("timeout", sandbox, "5m", "--idle")["idle_timeout_ms"] == 300_000
    assert ctl.json("timeout", sandbox, "none", "--idle")["idle_timeout_ms"] is None
    ctl.text("rm", sandbox)


def test_a_key_has_a_tier_and_terms_of_its_own(ctl: Ctl) -> None:
    made = ctl.json("key", "create", "bent", "--tier", "beta", "--max-sandboxes", "3", "--own")
    assert made["quota"]["requests_per_minute"] == 60
    assert made["quota"]["max_sandboxes"] == 3
    (line,) = [line for line in ctl.text("key", "ls").splitlines() if made["id"] in line]
    assert line.split()[2:7] == ["read", "write", "3", "60", "its"]
    ctl.text("key", "revoke", made["id"])
