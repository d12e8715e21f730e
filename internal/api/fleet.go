package api

import (
	"time"

	"github.com/lamina-vm/lamina/internal/vm"
)

// Fleet is a declared set of machines. Groups are in the order of the document.
type Fleet struct {
	Name   string       `json:"name"`
	Groups []FleetGroup `json:"groups"`
}

// FleetGroup is so many equal machines of one template.
type FleetGroup struct {
	// Name of the group: its machines are NAME-1, NAME-2, ... unless Names, a
	// pattern that makes at least Count names, says otherwise.
	Name     string `json:"name"`
	Names    string `json:"names,omitempty"`
	Template string `json:"template"` // name or digest
	// Digest is what Template stood for when the fleet was applied last. It is
	// not read in a request.
	Digest string `json:"digest,omitempty"`
	Count  int    `json:"count"`
	MachineConfig
	// OwnKeys also log in: those of the person who applied the fleet, which its
	// document does not name. Other ones than a machine was made with do not replace it.
	OwnKeys []string `json:"ownKeys,omitempty"`

	Warm Warm `json:"warm,omitempty"`
	// Ports are forwards of which each machine gets its own: the host port of
	// machine i (from 0) is HostPort+i; 0 is chosen at the start. The
	// machines of a rollout's surge have those after the last one.
	Ports []vm.Forward `json:"ports,omitempty"`

	Rollout Rollout `json:"rollout,omitzero"`
	Health  Health  `json:"health,omitzero"`
}

// Rollout says how machines are replaced.
type Rollout struct {
	// Surge is how many machines there may be above Count, MaxUnavailable how
	// many below it may be healthy. Not both 0; default 1 and 0.
	Surge          int `json:"surge"`
	MaxUnavailable int `json:"maxUnavailable"`
}

// Health is what a machine must show to count as healthy.
type Health struct {
	Check    string        `json:"check,omitempty"`    // login (default), ready, agent, tcp, http, none
	Port     int           `json:"port,omitempty"`     // of the guest: tcp, http; it must be forwarded
	Path     string        `json:"path,omitempty"`     // http; "/" if empty
	Timeout  time.Duration `json:"timeout,omitempty"`  // from the start; 0: 5 min
	Interval time.Duration `json:"interval,omitempty"` // between two tries; 0: 1 s
}

// FleetStep is one step of a plan. Steps are carried out in order; those of one
// Wave beside each other.
type FleetStep struct {
	Wave    int    `json:"wave"`
	Do      string `json:"do"` // stop, remove, label, create, start, await
	Group   string `json:"group"`
	Machine string `json:"machine"`
	Why     string `json:"why"`
}

// FleetPlan is what an apply would do.
type FleetPlan struct {
	Fleet string      `json:"fleet"`
	Steps []FleetStep `json:"steps"` // empty means nothing to do
	Kept  int         `json:"kept"`  // machines that stay as they are
	// Hash of the document and of what was found: an apply may say that it wants
	// this plan and no other.
	Hash string `json:"hash"`
}

// FleetRequest plans or applies a fleet. Hash, if not empty, is that of the plan that was
// shown: another one is refused.
type FleetRequest struct {
	Fleet Fleet  `json:"fleet"`
	Hash  string `json:"hash,omitempty"`
}

// The states of a fleet.
const (
	FleetApplied  = "applied"
	FleetApplying = "applying"
	FleetRemoving = "removing"
	FleetFailed   = "failed"
	FleetRemoved  = "removed" // what a wait for its removal ends with
)

// FleetState is a fleet as it is.
type FleetState struct {
	Name string `json:"name"`
	// State is applied, applying or removing (also after a crash: they are
	// resumed), failed.
	State    string    `json:"state"`
	Problem  string    `json:"problem,omitempty"`
	Hash     string    `json:"hash,omitempty"` // of the plan that was applied last
	Fleet    Fleet     `json:"fleet"`          // as applied last, without passwords and user-data
	Machines []Machine `json:"machines"`
	Healthy  int       `json:"healthy"`
	Wanted   int       `json:"wanted"`
	At       time.Time `json:"at"`
}
