package vm

// Graphics is the machine's screen, the short way.
type Graphics struct {
	// VNC is "unix" (a socket in the machine's folder, the default),
	// "none", or HOST:DISPLAY on a loopback address.
	VNC string `json:"vnc"`
}

// DisplayType is a protocol by which a screen is seen.
type DisplayType string

const (
	DisplayVNC   DisplayType = "vnc"
	DisplaySPICE DisplayType = "spice"
	DisplayNone  DisplayType = "none" // the machine runs headless
)

// Display is a way to see the screen. At most one of each type.
type Display struct {
	Type DisplayType `json:"type"`

	// Socket is the absolute path of a unix socket. Where it and Listen and
	// Port are all empty, the socket is in the machine's folder.
	Socket string `json:"socket,omitempty"`
	// Listen is an address of the host; "" with a port is 127.0.0.1. An
	// address that is not a loopback one needs Password, TLS or Insecure.
	Listen string `json:"listen,omitempty"`
	// Port is the TCP port, 5900 or more for VNC; -1, or 0 with Listen, is chosen
	// at the start. TLSPort is SPICE's.
	Port    int `json:"port,omitempty"`
	TLSPort int `json:"tlsPort,omitempty"`
	// NoListen: nobody can connect (libvirt's listen type none).
	NoListen bool `json:"noListen,omitempty"`
	// Websocket is VNC's port for browsers: -1 is chosen, 0 is none.
	Websocket int `json:"websocket,omitempty"`

	// Password is asked of a viewer. VNC looks at its first 8 characters
	// only, and needs at least one. It is handed to QEMU over its monitor.
	Password string `json:"password,omitempty"`
	// PasswordValidTo (RFC 3339) is when it ends; "" is never.
	PasswordValidTo string `json:"passwordValidTo,omitempty"`
	// TLS is the absolute path of a folder with server-cert.pem and
	// server-key.pem (and ca-cert.pem).
	TLS string `json:"tls,omitempty"`
	// Insecure allows an address that others reach with neither.
	Insecure bool `json:"insecure,omitempty"`

	Keymap string `json:"keymap,omitempty"` // "en-us", "de", ...
	// SharePolicy is VNC's: allow-exclusive (the default), force-shared, ignore.
	SharePolicy string `json:"sharePolicy,omitempty"`
	// GL needs RenderNode, or the host's first one. Not for VNC.
	GL         Toggle `json:"gl,omitempty"`
	RenderNode string `json:"renderNode,omitempty"`

	// SPICE only.
	ImageCompression    string            `json:"imageCompression,omitempty"` // auto_glz, auto_lz, quic, glz, lz, off
	JPEGCompression     string            `json:"jpegCompression,omitempty"`  // auto, never, always
	ZlibCompression     string            `json:"zlibCompression,omitempty"`
	PlaybackCompression Toggle            `json:"playbackCompression,omitempty"`
	Streaming           string            `json:"streaming,omitempty"` // filter, all, off
	Clipboard           Toggle            `json:"clipboard,omitempty"`
	FileTransfer        Toggle            `json:"fileTransfer,omitempty"`
	AgentMouse          Toggle            `json:"agentMouse,omitempty"`
	Channels            map[string]string `json:"channels,omitempty"` // "main": "secure" or "insecure"; "default" is all others
}

// VideoModel is a graphics card.
type VideoModel string

const (
	VideoVGA    VideoModel = "vga"
	VideoCirrus VideoModel = "cirrus"
	VideoQXL    VideoModel = "qxl"
	VideoVirtio VideoModel = "virtio"
	VideoBochs  VideoModel = "bochs"
	VideoVMVGA  VideoModel = "vmvga"
	VideoRAMFB  VideoModel = "ramfb"
	VideoNone   VideoModel = "none" // no graphics card at all
)

// Video is a graphics card; the first one is the boot screen.
type Video struct {
	Model VideoModel `json:"model"`
	// Memory sizes in bytes; 0 is the model's default. VRAM is for vga,
	// cirrus, qxl, bochs and vmvga, RAM and VGAMem for qxl.
	VRAM   int64 `json:"vram,omitempty"`
	RAM    int64 `json:"ram,omitempty"`
	VGAMem int64 `json:"vgamem,omitempty"`
	Heads  int   `json:"heads,omitempty"` // virtio, qxl; 0 is 1
	// Accel3D needs a display with GL.
	Accel3D Toggle `json:"accel3d,omitempty"`
	// Width and Height in pixels are the first resolution, 0 the model's.
	Width  int `json:"width,omitempty"`
	Height int `json:"height,omitempty"`
}
