package boot

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// replay gives a transcript to an analyser, a line every 10 ms, and then lets
// the time pass until the analyser has decided. ends says that the machine
// ends with the transcript.
func replay(t *testing.T, o Options, name string, ends bool) (Result, []Event) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	a := newAnalyser(o)
	now := time.Duration(0)
	step := func(d time.Duration) {
		now += d
		a.tick(now)
	}
	for line := range bytes.SplitAfterSeq(text, []byte("\n")) {
		a.write(now, line)
		step(10 * time.Millisecond)
	}
	if ends {
		a.ended(now)
	}
	for a.result == nil && now < 3*time.Hour {
		step(tickInterval)
	}
	if a.result == nil {
		t.Fatalf("%s: nothing decided in three hours", name)
	}
	return *a.result, a.events
}

// The transcripts of boots that stop. Where each comes from stands in
// testdata/README.md.
func TestTranscriptProblems(t *testing.T) {
	minute := time.Minute
	for _, tc := range []struct {
		name   string
		hints  Hints
		ends   bool
		kind   string
		stage  Stage
		cause  string // in the cause
		remedy string // in the remedies
		last   string // in the last lines
		within time.Duration
	}{
		{"empty-disk-seabios", Hints{}, false, KindNoBootable, StageFirmware, "no disk that it can boot", "lamina img info", "No bootable device.", 5 * time.Second},
		{"empty-disk-ipxe", Hints{}, false, KindNoBootable, StageFirmware, "no disk that it can boot", "lamina screen NAME", "No bootable device.", 5 * time.Second},
		{"empty-disk-ovmf", Hints{}, false, KindNoBootable, StageFirmware, "no disk that it can boot", "lamina screen", "BdsDxe", 10 * time.Second},
		{"panic-wrong-bus", Hints{DiskBus: "ide"}, true, KindNoRoot, StageKernel, "/dev/vda1, which is the name of a disk on the virtio bus", "lamina run --bus virtio IMAGE", "Kernel panic", minute},
		{"panic-no-driver", Hints{DiskBus: "sata"}, true, KindNoRoot, StageKernel, "no driver for the sata bus", "lamina run --bus virtio IMAGE", "Kernel panic", minute},
		{"panic-init-ended", Hints{}, true, KindPanic, StageKernel, "first process ended", "lamina logs NAME", "Attempted to kill init", minute},
		{"panic-no-init", Hints{}, true, KindPanic, StageKernel, "", "lamina img check", "Kernel panic", minute},
		{"initramfs-damaged", Hints{}, true, KindInitramfs, StageKernel, "could not unpack its initramfs", "lamina pull --force", "Kernel panic", minute},
		{"initramfs-too-big", Hints{}, true, KindMemory, StageKernel, "too little memory", "--memory", "Kernel panic", minute},
		{"oom-panic", Hints{}, true, KindMemory, StageKernel, "too little memory", "--memory", "Kernel panic", minute},
		{"grub-prompt", Hints{}, false, KindLoader, StageBootLoader, "waits for somebody to type", "lamina console NAME", "grub>", 10 * time.Second},
		{"grub-rescue", Hints{}, false, KindLoader, StageBootLoader, "error: no such partition.) and waits for somebody to type", "lamina console NAME", "grub rescue>", 10 * time.Second},
		{"grub-menu-waits", Hints{}, false, KindLoader, StageBootLoader, "no time limit", "lamina console NAME", "highlighted", 20 * time.Second},
		{"grub-no-kernel", Hints{}, false, KindLoaderError, StageBootLoader, "not found", "lamina img check", "error: ", 20 * time.Second},
		{"grub-boots", Hints{DiskBus: "virtio"}, true, KindNoRoot, StageKernel, "", "", "Kernel panic", minute},
		{"syslinux-prompt", Hints{}, false, KindLoader, StageBootLoader, "waits for somebody to type", "lamina console NAME", "boot:", 20 * time.Second},
		{"syslinux-no-kernel", Hints{}, false, KindLoaderError, StageBootLoader, "Loading linux... failed: No such file", "lamina console", "boot:", 20 * time.Second},
		{"debian-no-root", Hints{DiskBus: "sata", Name: "web"}, false, KindNoRoot, StageKernel, "/dev/vda1, which is the name of a disk on the virtio bus; this machine's disk is on sata", "lamina screen web", "ALERT!  /dev/vda1", minute},
		{"dracut-no-root", Hints{DiskBus: "virtio-scsi"}, false, KindNoRoot, StageKernel, "no disk for /dev/disk/by-uuid/8a1e9e5a-4c5e-4a1f-8a2c-0d9d8f1f7a11: it has no driver for the virtio-scsi bus", "lamina run --bus virtio IMAGE", "does not exist", minute},
		{"alpine-no-root", Hints{DiskBus: "ide"}, false, KindNoRoot, StageKernel, "no driver for the ide bus", "--bus virtio", "Mounting root failed", minute},
		{"cirros-metadata", Hints{}, false, KindMetadata, StageCloudInit, "http://169.254.169.254/2009-04-04/instance-id", "without --no-seed", "request failed", 7 * minute},
		{"cloudinit-metadata", Hints{HasSeed: true}, false, KindMetadata, StageCloudInit, "although a seed is attached", "NoCloud", "url_helper.py", 7 * minute},
		{"systemd-waits", Hints{}, false, KindService, StageInit, "Wait for Network to be Configured", "lamina console", "start job", 5 * minute},
		{"emergency", Hints{}, false, KindEmergency, StageInit, "emergency shell", "/etc/fstab", "You are in emergency mode", 5 * time.Second},
		{"fsck", Hints{}, false, KindFsck, StageKernel, "damaged", "fsck", "manual fsck", 5 * time.Second},
		{"cpu-level", Hints{}, false, KindCPU, StageInit, "newer CPU", "--accel kvm", "x86-64-v3", 5 * time.Second},
		{"reboot-loop", Hints{}, false, KindRebootLoop, StageKernel, "4 times", "lamina logs", "Restarting system", 5 * time.Second},
		{"powered-off", Hints{}, true, KindEnded, StageInit, "shut itself down", "lamina start NAME", "reboot: Power down", 5 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, _ := replay(t, Options{Hints: tc.hints}, tc.name, tc.ends)
			p := r.Problem
			if p == nil {
				t.Fatalf("no problem: %+v", r)
			}
			if r.Login || p.Kind != tc.kind || p.Stage != tc.stage {
				t.Errorf("%s at %s, want %s at %s\ncause: %s\nlast: %s", p.Kind, p.Stage, tc.kind, tc.stage, p.Cause, strings.Join(p.Last, "\n"))
			}
			if !strings.Contains(p.Cause, tc.cause) {
				t.Errorf("cause %q, want %q in it", p.Cause, tc.cause)
			}
			if !strings.Contains(strings.Join(p.Remedy, "\n"), tc.remedy) {
				t.Errorf("remedies %q, want %q in them", p.Remedy, tc.remedy)
			}
			if !strings.Contains(strings.Join(p.Last, "\n"), tc.last) {
				t.Errorf("last lines %q, want %q in them", p.Last, tc.last)
			}
			if r.Took > tc.within {
				t.Errorf("took %v, want at most %v", r.Took, tc.within)
			}
			for _, l := range p.Last {
				if strings.ContainsAny(l, "\x1b\r\n\x00") || len(l) > clipLine+3 {
					t.Errorf("line %q", l)
				}
			}
			if len(p.Last) > maxLast || p.Cause == "" || len(p.Remedy) == 0 {
				t.Errorf("%d lines, cause %q, %d remedies", len(p.Last), p.Cause, len(p.Remedy))
			}
		})
	}
}

// The transcripts of boots that reach login.
func TestTranscriptLogin(t *testing.T) {
	all := []Stage{StageBootLoader, StageKernel, StageInit, StageCloudInit, StageLogin}
	for _, tc := range []struct {
		name   string
		stages []Stage
		note   string
	}{
		{"debian-login", all, ""},
		{"debian-login-swamped", all, ""},
		{"cirros-login", []Stage{StageBootLoader, StageKernel, StageCloudInit, StageLogin}, metadataNote},
		{"alpine-login", []Stage{StageBootLoader, StageKernel, StageInit, StageCloudInit, StageLogin}, ""},
		{"buildroot-autologin", []Stage{StageKernel, StageInit, StageLogin}, ""},
		{"one-restart", []Stage{StageKernel, StageInit, StageKernel, StageInit, StageLogin}, "the guest started again"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, events := replay(t, Options{Hints: Hints{TCG: true}}, tc.name, false)
			if !r.Login || r.Stage != StageLogin || r.Problem != nil || r.Via != "serial" {
				t.Fatalf("%+v, problem %+v", r, r.Problem)
			}
			if r.Took > 10*time.Second {
				t.Errorf("took %v", r.Took)
			}
			var stages []Stage
			notes := ""
			for _, e := range events {
				if e.Note == "" {
					stages = append(stages, e.Stage)
				}
				notes += e.Note
			}
			if !slices.Equal(stages, tc.stages) {
				t.Errorf("stages %v, want %v", stages, tc.stages)
			}
			if !strings.Contains(notes, tc.note) || tc.note == "" && notes != "" {
				t.Errorf("notes %q, want %q", notes, tc.note)
			}
		})
	}
}

// A wait is told when it begins, long before it counts as a problem.
func TestWaitIsToldAtOnce(t *testing.T) {
	for _, name := range []string{"cirros-metadata", "cloudinit-metadata"} {
		_, events := replay(t, Options{}, name, false)
		i := slices.IndexFunc(events, func(e Event) bool { return strings.Contains(e.Note, "metadata service") })
		if i < 0 || events[i].Since > time.Second {
			t.Errorf("%s: %+v", name, events)
		}
		if n := strings.Count(noteText(events), "metadata service"); n != 1 {
			t.Errorf("%s: told %d times", name, n)
		}
	}
}

func noteText(events []Event) string {
	s := ""
	for _, e := range events {
		s += e.Note + "\n"
	}
	return s
}

// A caller that sets Stall or Timeout gets the reason at that time.
func TestOwnLimits(t *testing.T) {
	r, _ := replay(t, Options{Timeout: 30 * time.Second}, "cirros-metadata", false)
	if r.Problem == nil || r.Problem.Kind != KindMetadata || r.Took > 31*time.Second {
		t.Errorf("timeout: %+v %+v", r, r.Problem)
	}
	r, _ = replay(t, Options{Stall: 20 * time.Second}, "systemd-waits", false)
	if r.Problem == nil || r.Problem.Kind != KindService || r.Took > 21*time.Second {
		t.Errorf("stall: %+v %+v", r, r.Problem)
	}
}
