package daemon

import (
	"reflect"
	"testing"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/vm"
)

func TestDisplays(t *testing.T) {
	vnc := func(d vm.Display) []vm.Display { d.Type = vm.DisplayVNC; return []vm.Display{d} }
	for _, c := range []struct {
		config api.MachineConfig
		want   []vm.Display
		fails  bool
	}{
		{config: api.MachineConfig{}},
		{config: api.MachineConfig{VNC: "unix"}},
		{config: api.MachineConfig{VNC: "none"}},
		{config: api.MachineConfig{VNC: "127.0.0.1:3"}},
		{config: api.MachineConfig{VNC: "unix", VNCPassword: "x"}, want: vnc(vm.Display{Password: "x"})},
		{config: api.MachineConfig{VNC: "127.0.0.1:3", VNCPassword: "x"}, want: vnc(vm.Display{Listen: "127.0.0.1", Port: 5903, Password: "x"})},
		{config: api.MachineConfig{VNC: "0.0.0.0:1"}, want: vnc(vm.Display{Listen: "0.0.0.0", Port: 5901})}, // which Validate refuses
		{config: api.MachineConfig{VNC: "[::]:1", InsecureGraphics: true}, want: vnc(vm.Display{Listen: "::", Port: 5901, Insecure: true})},
		{config: api.MachineConfig{VNC: "0.0.0.0:1", VNCTLS: "/pki"}, want: vnc(vm.Display{Listen: "0.0.0.0", Port: 5901, TLS: "/pki"})},
		{config: api.MachineConfig{VNC: "none", VNCPassword: "x"}, fails: true},
		{config: api.MachineConfig{InsecureGraphics: true}, fails: true},
		{config: api.MachineConfig{VNC: "0.0.0.0"}, fails: true},
		{config: api.MachineConfig{VNC: "0.0.0.0:-1"}, fails: true},
		{config: api.MachineConfig{VNC: "0.0.0.0:60000"}, fails: true},
	} {
		got, err := displays(c.config)
		if (err != nil) != c.fails || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%+v: %+v, %v", c.config, got, err)
		}
	}
	x := serve(t, Options{Driver: &fakeDriver{}})
	for _, config := range []api.MachineConfig{{VNC: "0.0.0.0:1"}, {VNC: "[::]:1"}} {
		if _, e := x.stream("POST", "/v1/machines", api.RunRequest{Image: x.image, Name: "open", MachineConfig: config}, nil); e == nil || e.Code != api.CodeInvalid {
			t.Errorf("%s: %v", config.VNC, e)
		}
	}
}
