// Package boot follows a guest on its way to the login prompt, from what it
// writes to the serial port and, where nothing comes there, from its VGA text
// screen; when the boot stops it says where, why and what to try.
package boot

import (
	"context"
	"io"
	"time"
)

// Stage is a step on the way to login. Later stages compare greater.
type Stage int

// The stages in the order in which a guest passes them; a guest may skip any.
const (
	StageNone       Stage = iota // nothing seen yet
	StageFirmware                // BIOS or UEFI
	StageBootLoader              // GRUB, SYSLINUX, ...
	StageKernel                  // the kernel's own messages
	StageInit                    // the first process: systemd, busybox, OpenRC
	StageCloudInit               // cloud-init or a work-alike configures the guest
	StageLogin                   // a login prompt
)

// Sources are where a boot is watched. Serial must be given.
type Sources struct {
	// Serial reads the serial log from its first byte and blocks for more
	// until its end of life (the machine ended), then returns io.EOF.
	Serial io.Reader
	// Screen returns the VGA text screen, nil lines where there is none.
	// May be nil.
	Screen func(ctx context.Context) ([]string, error)
}

// Hints are what the watcher knows of the machine, for its diagnosis.
type Hints struct {
	DiskBus string // "ide", ...
	HasSeed bool   // a NoCloud seed is attached
	TCG     bool   // no hardware virtualization: everything takes longer
	Name    string // the machine's, for the commands that a Problem advises
}

// Options are the choices of Watch.
type Options struct {
	Hints Hints
	// Timeout ends the watch when the login prompt does not come at all.
	// 0 means 10 minutes, 4 times that under TCG.
	Timeout time.Duration
	// Stall is how long nothing new may appear before the boot counts as
	// stopped. 0 means 90 s, 4 times that under TCG. Known dead ends (no
	// bootable disk, panic, boot loader prompt) are told sooner.
	Stall time.Duration
	// OnEvent is called for each new stage and for each thing worth telling
	// (a service that waits), one call at a time. May be nil.
	OnEvent func(Event)
}

// Event is a step of the boot.
type Event struct {
	Stage Stage         `json:"stage"`
	Since time.Duration `json:"since"` // since Watch began
	Line  string        `json:"line"`  // the line that shows it
	Note  string        `json:"note,omitempty"`
}

// Result is how a boot ended.
type Result struct {
	Stage Stage         `json:"stage"` // the last one reached
	Took  time.Duration `json:"took"`
	// Login is true at the login prompt; then Problem is nil.
	Login   bool     `json:"login"`
	Problem *Problem `json:"problem,omitempty"`
	// Via is "serial" or "screen": where the last stage was seen.
	Via string `json:"via"`
}

// Problem says why a boot stopped.
type Problem struct {
	Kind   string   `json:"kind"`   // "no-bootable-disk", "no-root-device", "kernel-panic", "boot-loader-prompt", "metadata-wait", "stalled", "timeout", "ended", ...
	Stage  Stage    `json:"stage"`  // where it stopped
	Last   []string `json:"last"`   // the last lines of output
	Cause  string   `json:"cause"`  // the likely cause, one sentence
	Remedy []string `json:"remedy"` // what to try, most likely first
}
