package virtinstall

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// What plain QEMU cannot do is known before anything is made, and what it does
// in another way than the command line says is told once.
func TestPlainCheck(t *testing.T) {
	for _, c := range []struct{ more, devices, refused, warned string }{
		{},
		{devices: `<graphics type="vnc" port="5901" listen="0.0.0.0"/>`}, // it gets a password
		{devices: `<graphics type="vnc" listen="127.0.0.1"/>`},
		{more: `<numatune><memory nodeset="0"/></numatune>`, refused: "numatune"},
		{more: `<currentMemory unit="MiB">256</currentMemory>`, warned: "currentMemory"},
		{devices: `<input type="keyboard" bus="virtio"><address type="pci" slot="9"/></input>`, warned: "devices/input/address"},
	} {
		text := `<domain type="qemu"><name>x</name><memory unit="MiB">512</memory><vcpu>1</vcpu><os><type arch="x86_64" machine="q35">hvm</type></os>` +
			c.more + `<devices><disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="/none/x.qcow2"/><target dev="vda" bus="virtio"/></disk>` + c.devices + `</devices></domain>`
		doc, err := domxml.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		var errs bytes.Buffer
		g := newGuest(&arguments{}, nil, Streams{Out: &errs, Err: &errs})
		before := doc.Clone()
		err = newPlainHost().check(g, doc, doc)
		if (err != nil) != (c.refused != "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%s%s: %v, want %q", c.more, c.devices, err, c.refused)
		}
		if n := strings.Count(errs.String(), "WARNING"); (n == 1) != (c.warned != "") || !strings.Contains(errs.String(), c.warned) {
			t.Errorf("%s%s: it says %q", c.more, c.devices, errs.String())
		}
		if !doc.Equal(before) {
			t.Errorf("%s%s becomes %s", c.more, c.devices, doc)
		}
	}
}

// A machine that runs and shows no login prompt was made as asked for; one
// that has ended was not.
func TestWithoutLogin(t *testing.T) {
	dir, err := os.MkdirTemp("", "l") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	at := home.At(dir)
	if err := os.Mkdir(at.Run, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", at.Socket())
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		state := api.Running
		if strings.HasSuffix(r.URL.Path, "/ended") {
			state = api.Stopped
		}
		_ = json.NewEncoder(w).Encode(api.Machine{Name: "x", State: state})
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })

	var errs bytes.Buffer
	m := &plainMachine{g: newGuest(&arguments{}, nil, Streams{Out: &errs, Err: &errs}), c: client.New(at), name: "x"}
	boot, other := api.Errorf(api.CodeBoot, "no prompt"), errors.New("other")
	if err := m.withoutLogin(t.Context(), other); !errors.Is(err, other) {
		t.Errorf("another error becomes %v", err)
	}
	if err := m.withoutLogin(t.Context(), boot); err != nil || !strings.Contains(errs.String(), "no prompt") {
		t.Errorf("it runs: %v, saying %q", err, errs.String())
	}
	m.name = "ended"
	if err := m.withoutLogin(t.Context(), boot); !errors.Is(err, boot) {
		t.Errorf("it has ended: %v", err)
	}
}
