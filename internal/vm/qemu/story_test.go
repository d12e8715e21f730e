package qemu

import "testing"

func TestStory(t *testing.T) {
	for want, s := range map[string]story{
		"stopped guest shut down":                                          {shutdown: "guest-shutdown", killed: true},
		"stopped killed":                                                   {killed: true},
		"stopped QEMU was ended by a signal":                               {shutdown: "host-signal"},
		"stopped guest rebooted, which ends this machine":                  {shutdown: "guest-reset"},
		"crashed the guest's kernel panicked: words":                       {panicked: true, killed: true, shutdown: "host-qmp-quit"},
		"crashed QEMU ended: host-error: words":                            {shutdown: "host-error"},
		"crashed QEMU ended: signal: killed: words":                        {},
		"crashed QEMU stopped the guest with status internal-error: words": {internal: true, shutdown: "host-qmp-quit"},
	} {
		e := s.exit(false, false, "signal: killed", "words")
		if e.Failed {
			t.Errorf("%+v: failed", s)
		}
		if got := string(e.State) + " " + e.Reason; got != want {
			t.Errorf("%+v: %q, want %q", s, got, want)
		}
	}
}
