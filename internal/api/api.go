// Package api is what the daemon and its clients say to each other: JSON over
// HTTP on a unix socket. It imports nothing heavy, as the command links it.
//
// Requests and answers are the types of this package. An answer other than
// 2xx carries an [Error]. Operations that take time answer with a stream of
// [Event] values, one JSON object a line (application/x-ndjson); the last one
// has Done set, with the result or the error. Closing the connection before
// that cancels the operation, unless it says otherwise.
//
//	GET    /v1/version                       Version
//	GET    /v1/catalog                       []CatalogEntry
//	POST   /v1/pull            PullRequest   events, result PullResult
//	GET    /v1/templates?all=1               []Template; all: also frozen and warm layers
//	POST   /v1/templates       ImportRequest events, result Template
//	GET    /v1/templates/{ref}               Template
//	DELETE /v1/templates/{ref}               204
//	POST   /v1/templates/{ref}/verify        events, result Template; CodeFailed if the image is not what was imported
//	POST   /v1/templates/{ref}/tag     TagRequest     Template
//	POST   /v1/templates/{ref}/export  ExportRequest  events
//	POST   /v1/templates/{ref}/warm    WarmRequest    events, result WarmUnit
//	POST   /v1/template-from   TemplateFromRequest  events, result Template
//	GET    /v1/warm                          []WarmUnit
//	DELETE /v1/warm/{id}                     204; machines that were made of it go on
//	GET    /v1/lineage                       []LineageNode
//	POST   /v1/prune           PruneRequest  PruneResult
//	GET    /v1/space                         Space
//	PUT    /v1/space           SpaceLimits   Space
//	GET    /v1/fleets                        []FleetState
//	GET    /v1/fleets/{name}                 FleetState
//	POST   /v1/fleets/plan     FleetRequest  FleetPlan
//	POST   /v1/fleets/apply    FleetRequest  events, result FleetState; goes on when the client goes
//	GET    /v1/fleets/{name}/wait            events of what is under way from its first, result FleetState as it is then
//	DELETE /v1/fleets/{name}?force=1         events; goes on when the client goes; removes its machines too (force: also running ones)
//	POST   /v1/machines/{name}/fork    ForkRequest          events, result ForkResult
//	POST   /v1/machines/{name}/clone   CloneMachineRequest  events, result []Machine
//	POST   /v1/machines/{name}/commit  CommitRequest        events, result Template
//	POST   /v1/machines/{name}/flatten FlattenRequest       events, result Machine
//	POST   /v1/machines/{name}/rebase  RebaseRequest        events, result Machine
//	GET    /v1/machines                      []Machine
//	POST   /v1/machines        RunRequest    events, result Machine; the machine stays when the client goes
//	POST   /v1/clones          CloneRequest  events, result []Machine
//	GET    /v1/machines/{name}               Machine
//	POST   /v1/define          DefineRequest events, result Machine; the machine stays when the client goes
//	DELETE /v1/machines/{name}?force=1&disks=1  204; a running machine needs force; disks: see Client.Remove
//	POST   /v1/machines/{name}/start  StartRequest  events, result Machine; stays
//	POST   /v1/machines/{name}/stop   StopRequest   events, result Machine
//	GET    /v1/machines/{name}/wait?for=end|installed  events, result Machine; see [WaitFor]
//	POST   /v1/machines/{name}/autostart  AutostartRequest  Machine
//	POST   /v1/machines/{name}/attach  AttachRequest  Machine
//	POST   /v1/machines/{name}/detach  DetachRequest  Machine
//	POST   /v1/machines/{name}/resize  ResizeRequest  Machine
//	POST   /v1/machines/{name}/media   MediaRequest   Machine
//	GET    /v1/machines/{name}/boot          events of the current boot from its first, then as they come, until login or problem
//	GET    /v1/machines/{name}/log?follow=1&tail=N  the serial log as it is (text/plain)
//	GET    /v1/machines/{name}/screen?format=text|png
//	POST   /v1/machines/{name}/console       101 Upgrade: lamina-console, then the raw bytes of the serial port, both ways
//	POST   /v1/shutdown                      204; ends the daemon, not the machines
package api

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/lamina-vm/lamina/internal/guest/boot"
	"github.com/lamina-vm/lamina/internal/vm"
)

// Error codes that a client acts on.
const (
	CodeNotFound = "not-found"
	CodeExists   = "exists"
	CodeInUse    = "in-use" // a template with clones, a running machine
	CodeInvalid  = "invalid"
	CodeFailed   = "failed"
	CodeNoSpace  = "no-space"     // too little space on the host, or beyond the quota
	CodeBoot     = "boot-problem" // Problem is set
)

// Error is why something failed.
type Error struct {
	Code    string        `json:"code"`
	Message string        `json:"message"`
	Problem *boot.Problem `json:"problem,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Errorf makes an Error.
func Errorf(code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Event is one step of an operation.
type Event struct {
	// Step is what is being done: "download", "verify", "import", "overlay",
	// "seed", "start", "boot". Text is a line for a person.
	Step string `json:"step,omitempty"`
	Text string `json:"text,omitempty"`
	// Machine names the machine that the event is about.
	Machine string `json:"machine,omitempty"`
	// Current of Total bytes are done; Total 0 means not known.
	Current int64 `json:"current,omitempty"`
	Total   int64 `json:"total,omitempty"`
	// Warning is something to tell once: no KVM, no data source.
	Warning string      `json:"warning,omitempty"`
	Boot    *boot.Event `json:"boot,omitempty"`

	Done   bool            `json:"done,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

// Version answers GET /v1/version.
type Version struct {
	Version string `json:"version"`
	API     int    `json:"api"`
	PID     int    `json:"pid"`
}

// CatalogEntry is an image that can be pulled by name.
type CatalogEntry struct {
	Name        string   `json:"name"` // "debian:12"
	Aliases     []string `json:"aliases,omitempty"`
	Description string   `json:"description"`
	URL         string   `json:"url"`
	ChecksumURL string   `json:"checksumURL"`
	User        string   `json:"user"` // the image's default user
	MinMemory   int64    `json:"minMemory"`
}

// PullRequest fetches an image into the cache: a catalog name, an http(s) or
// file URL, or a path.
type PullRequest struct {
	Ref string `json:"ref"`
	// Checksum, "sha256:HEX" or "sha512:HEX", is required to match if given.
	Checksum string `json:"checksum,omitempty"`
	Force    bool   `json:"force,omitempty"` // fetch again
}

// PullResult says where the image is.
type PullResult struct {
	Path     string `json:"path"`
	Size     int64  `json:"size"`
	SHA256   string `json:"sha256"`
	Verified bool   `json:"verified"` // against a checksum from the publisher or the user
	Cached   bool   `json:"cached"`   // nothing was fetched
}

// ImportRequest makes a template of an image.
type ImportRequest struct {
	Source string `json:"source"` // a template's name or digest, or as PullRequest.Ref
	Name   string `json:"name,omitempty"`
	Format string `json:"format,omitempty"` // of a raw image that must not be probed
	User   string `json:"user,omitempty"`   // default user recorded for its clones
	// Compress the stored image: "", "none" (read fastest), "zlib", "zstd".
	Compress string `json:"compress,omitempty"`
	// Checksum, as PullRequest.Checksum, of an image that is no template.
	Checksum string `json:"checksum,omitempty"`
}

// Template is an image that machines are made of.
type Template struct {
	Name        string    `json:"name"`
	Digest      string    `json:"digest"` // SHA-256 of the stored image, hex
	Source      string    `json:"source"`
	VirtualSize int64     `json:"virtualSize"`
	DiskSize    int64     `json:"diskSize"` // bytes allocated on the host
	User        string    `json:"user,omitempty"`
	CreatedAt   time.Time `json:"createdAt"`
	Machines    []string  `json:"machines"` // that need it, also by way of layers

	Kind      LayerKind `json:"kind"`
	Names     []string  `json:"names"`              // all of them
	Parent    string    `json:"parent,omitempty"`   // layer below, "" for a whole image
	Layers    []string  `json:"layers,omitempty"`   // that lie directly over it
	Warm      []string  `json:"warm,omitempty"`     // ids of its warm units
	Info      ImageInfo `json:"info,omitzero"`      // what looking into it has found
	Compress  string    `json:"compress,omitempty"` // of the stored image
	Immutable bool      `json:"immutable"`          // the file system keeps it from being changed
	UsedAt    time.Time `json:"usedAt,omitzero"`    // a machine was made of it last
}

// MachineConfig is what a person chooses for a machine.
type MachineConfig struct {
	CPUs     int      `json:"cpus,omitempty"`     // 0: 1
	Memory   int64    `json:"memory,omitempty"`   // bytes; 0: 1 GiB
	DiskSize int64    `json:"diskSize,omitempty"` // 0: the template's
	Bus      vm.Bus   `json:"bus,omitempty"`
	Cache    vm.Cache `json:"cache,omitempty"`
	Accel    vm.Accel `json:"accel,omitempty"`
	Machine  string   `json:"machine,omitempty"`
	// VNC is "unix", "none" or ADDR:DISPLAY. An address that others reach needs
	// a password, a folder of certificates (VNCTLS, absolute), or InsecureGraphics.
	VNC              string `json:"vnc,omitempty"`
	VNCPassword      string `json:"vncPassword,omitempty"` // its first 8 characters count
	VNCTLS           string `json:"vncTLS,omitempty"`
	InsecureGraphics bool   `json:"insecureGraphics,omitempty"`

	Forwards []vm.Forward `json:"forwards,omitempty"`

	Hostname string   `json:"hostname,omitempty"` // the machine's name if empty
	User     string   `json:"user,omitempty"`
	SSHKeys  []string `json:"sshKeys,omitempty"`
	Password string   `json:"password,omitempty"`
	UserData []byte   `json:"userData,omitempty"`
	NoSeed   bool     `json:"noSeed,omitempty"`
	// UserDataTemplate: UserData is a text/template over Name, Hostname, Index (from
	// 1), Count and Template, made for each machine.
	UserDataTemplate bool `json:"userDataTemplate,omitempty"`
	// Labels are for people and programs; "fleet" and "group" are set by fleets.
	Labels map[string]string `json:"labels,omitempty"`
	// KSM lets the host merge equal pages of machines, where its kernel does.
	KSM bool `json:"ksm,omitempty"`
	// Balloon gives pages that the guest does not use back to the host (free
	// page reporting).
	Balloon bool `json:"balloon,omitempty"`
}

// RunRequest imports an image, makes a machine of it and starts it.
type RunRequest struct {
	Image  string `json:"image"` // a template's name or digest, or as PullRequest.Ref
	Format string `json:"format,omitempty"`
	Name   string `json:"name,omitempty"` // made up from the image's if empty
	MachineConfig
	// NoWait ends the stream when the guest executes, not at login.
	NoWait  bool          `json:"noWait,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"` // boot.Options.Timeout
	Warm    Warm          `json:"warm,omitempty"`
	Wait    WaitTo        `json:"wait,omitempty"`
}

// CloneRequest makes machines of a template.
type CloneRequest struct {
	Template string `json:"template"`
	// Names may each be a pattern: "w-{01..10}".
	Names []string `json:"names"`
	MachineConfig
	Start   bool          `json:"start,omitempty"`
	NoWait  bool          `json:"noWait,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"`
	Warm    Warm          `json:"warm,omitempty"`
	Wait    WaitTo        `json:"wait,omitempty"`
}

// StartRequest starts a stopped machine.
type StartRequest struct {
	// Install repeats an install phase that was interrupted.
	Install bool          `json:"install,omitempty"`
	NoWait  bool          `json:"noWait,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"`
	// Warm is for a machine that has written nothing yet: others start cold.
	Warm Warm   `json:"warm,omitempty"`
	Wait WaitTo `json:"wait,omitempty"`
}

// StopRequest stops a machine: power button, and after Timeout (0: 60 s) or
// at once with Force, power off.
type StopRequest struct {
	Force   bool          `json:"force,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"`
}

// MachineState is what a person is told a machine does.
type MachineState string

const (
	Defined  MachineState = "defined"  // made, never started
	Starting MachineState = "starting" // on its way to login
	Login    MachineState = "login"    // at its login prompt
	Running  MachineState = "running"  // executes; the boot is not watched (any more)
	// Installing: the install phase of a machine runs (see [Install]) and has
	// shown no login prompt.
	Installing MachineState = "installing"
	Stuck      MachineState = "stuck" // the boot stopped; Problem says why
	// Paused by the host, for lack of space (Machine.PauseReason), or a libvirt's
	// machine, by anybody.
	Paused MachineState = "paused"
	// Renewing: started warm, its console answers, and its guest is becoming
	// itself (host name, keys, addresses).
	Renewing MachineState = "renewing"
	Stopped  MachineState = "stopped"
	Crashed  MachineState = "crashed"
)

// Machine is a machine as the daemon knows it.
type Machine struct {
	ID        string       `json:"id"`
	Name      string       `json:"name"`
	State     MachineState `json:"state"`
	Template  string       `json:"template"` // name, or digest if it has none
	Digest    string       `json:"digest"`   // of the layer that its own lies over; see Base
	CreatedAt time.Time    `json:"createdAt"`
	Dir       string       `json:"dir"`
	Spec      vm.Spec      `json:"spec"`
	DiskSize  int64        `json:"diskSize"` // bytes that its own layer takes on the host

	Run     *vm.RunInfo   `json:"run,omitempty"`        // while it runs
	Memory  int64         `json:"memoryUsed,omitempty"` // proportional set size, bytes; while it runs
	Stage   boot.Stage    `json:"stage"`
	LoginIn time.Duration `json:"loginIn,omitempty"` // from start to the login prompt
	Problem *boot.Problem `json:"problem,omitempty"`
	Exit    *vm.Exit      `json:"exit,omitempty"` // how it ended last

	// Definition is set for a machine that was made by a [DefineRequest];
	// such a machine has no Template and no Digest.
	Definition *Definition `json:"definition,omitempty"`
	Autostart  bool        `json:"autostart,omitempty"`

	// Base is the layer that its own lies over: the digest of its template, or the id of
	// a layer that was frozen over that, for a warm unit or a copy; "" for one with a
	// definition or a flat disk. Digest is the same.
	Base string `json:"base,omitempty"`
	// Warmth is set while a machine runs that was started warm, Identity once the
	// guest has confirmed it.
	Warmth      *Warmth           `json:"warmth,omitempty"`
	Identity    *Identity         `json:"identity,omitempty"`
	PauseReason string            `json:"pauseReason,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`

	SSHPort int    `json:"sshPort,omitempty"` // on 127.0.0.1, while it runs
	User    string `json:"user,omitempty"`    // to log in as
}
