package seed

import (
	"strings"
	"testing"
)

const testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICSgiHvA5ymCBnMMA++7SPbTFb2rfUHGu+RqPINtbUI7 ann@desk"

func TestValidateNamesTheValue(t *testing.T) {
	ok := Config{InstanceID: "iid-1"}
	with := func(change func(*Config)) Config {
		c := ok
		change(&c)
		return c
	}
	long := strings.Repeat("a", 64)
	for _, tc := range []struct {
		name string
		c    Config
		want string // in the error
	}{
		{"no instance id", Config{}, "instance id is empty"},
		{"path as instance id", Config{InstanceID: "a/b"}, `"a/b"`},
		{"dot instance id", Config{InstanceID: ".."}, `".."`},
		{"long instance id", Config{InstanceID: long + long + "a"}, "129"},
		{"underscore in host name", with(func(c *Config) { c.Hostname = "my_host" }), `"my_host": '_'`},
		{"dash at the end", with(func(c *Config) { c.Hostname = "web-" }), `"web-"`},
		{"empty label", with(func(c *Config) { c.Hostname = "web..org" }), "empty part"},
		{"long label", with(func(c *Config) { c.Hostname = long }), "63"},
		{"long host name", with(func(c *Config) { c.Hostname = strings.Repeat("a.", 130) + "a" }), "253"},
		{"capital user", with(func(c *Config) { c.User = "Bob" }), `"Bob"`},
		{"digit first", with(func(c *Config) { c.User = "1a" }), `"1a"`},
		{"colon in user", with(func(c *Config) { c.User = "a:b" }), `"a:b"`},
		{"long user", with(func(c *Config) { c.User = long }), "32"},
		{"no key", with(func(c *Config) { c.SSHKeys = []string{"hello world"} }), `"hello world"`},
		{"empty key", with(func(c *Config) { c.SSHKeys = []string{" "} }), "empty"},
		{"private key", with(func(c *Config) { c.SSHKeys = []string{"-----BEGIN OPENSSH PRIVATE KEY-----\nx"} }), "private"},
		{"cut key", with(func(c *Config) { c.SSHKeys = []string{testKey[:40]} }), "not an ssh public key"},
		{"key of another type", with(func(c *Config) { c.SSHKeys = []string{strings.Replace(testKey, "ssh-ed25519", "ssh-rsa", 1)} }), "not an ssh public key"},
		{"two keys in one", with(func(c *Config) { c.SSHKeys = []string{testKey + "\n" + testKey} }), "more than one line"},
		{"password with a line end", with(func(c *Config) { c.Password = "a\nb" }), "password"},
		{"long password", with(func(c *Config) { c.Password = strings.Repeat("a", 257) }), "256"},
		{"bad MAC", with(func(c *Config) { c.MACs = []string{"52:54"} }), `"52:54"`},
		{"huge user-data", with(func(c *Config) { c.UserData = make([]byte, maxUserData+1) }), "user-data"},
		{"huge network-config", with(func(c *Config) { c.NetworkConfig = make([]byte, maxNetworkConfig+1) }), "network-config"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Build(tc.c)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestValidateTakes(t *testing.T) {
	for _, c := range []Config{
		{InstanceID: "6f3c0a-x.1_"},
		{InstanceID: "i", Hostname: "WEB-01.example.org", User: "_ann-2", SSHKeys: []string{testKey, "  " + testKey + " \n"}},
		{InstanceID: "i", SSHKeys: []string{`command="echo hi there",no-pty ` + testKey}},
		{InstanceID: "i", MACs: []string{"52:54:00:12:34:56"}},
	} {
		if err := c.Validate(); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestNetworkConfigForms(t *testing.T) {
	plain := "version: 2\nethernets: {}\n"
	got, err := networkConfig([]byte(plain))
	if err != nil || string(got) != plain {
		t.Errorf("%q, %v", got, err)
	}
	got, err = networkConfig([]byte("network:\n  version: 2\n  ethernets: {}\n"))
	if err != nil || string(got) != plain {
		t.Errorf("wrapped: %q, %v", got, err)
	}
	for _, bad := range []string{"", "[1]", "version: 3", "ethernets: {}", "a: [", "network: 1"} {
		if _, err := networkConfig([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
