package virtinstall

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/lamina-vm/lamina/internal/guest/seed"
	"github.com/lamina-vm/lamina/internal/names"
)

// cloudInit is --cloud-init: what a cloud image is told at its first boot.
type cloudInit struct {
	g            *guest
	rootPassword string
	expires      bool // it must be changed at the first login
	rootKeys     []string
	userKeys     []string
	disable      bool // cloud-init does not run at later boots
	metaData     []byte
	userData     []byte
	network      []byte
}

func cloudInitOption() option {
	return option{flag: "cloud-init", subs: func() []sub {
		return []sub{{name: "clouduser-ssh-key", aliases: []string{"ssh-key"}}, {name: "disable", kind: yesNo}, {name: "meta-data"}, {name: "network-config"},
			{name: "root-password-file"}, {name: "root-password-generate", kind: yesNo}, {name: "root-ssh-key"}, {name: "user-data"}}
	}}
}

// readCloudInit reads --cloud-init, nil where it was not given. Alone it means
// a new password for root, and that cloud-init runs once.
func readCloudInit(g *guest) (*cloudInit, error) {
	text, ok := g.args.last("cloud-init")
	if !ok {
		return nil, nil
	}
	if text == "" {
		text = "root-password-generate=yes,disable=yes"
	}
	given, err := cloudInitOption().read(text)
	if err != nil {
		return nil, err
	}
	c := &cloudInit{g: g}
	if c.disable, err = given.yes("disable"); err != nil {
		return nil, err
	}
	generate, err := given.yes("root-password-generate")
	if err != nil {
		return nil, err
	}
	if v, ok := given.get("ssh-key"); ok {
		given.set("clouduser-ssh-key", v)
	}
	file := func(key string, into *[]byte) {
		name, ok := given.get(key)
		if !ok || err != nil {
			return
		}
		if *into, err = readBounded(name, maxAnswer); err != nil {
			err = fmt.Errorf("--cloud-init %s: %w", key, err)
		}
	}
	var password, rootKey, userKey []byte
	for key, into := range map[string]*[]byte{"meta-data": &c.metaData, "user-data": &c.userData, "network-config": &c.network,
		"root-password-file": &password, "root-ssh-key": &rootKey, "clouduser-ssh-key": &userKey} {
		file(key, into)
	}
	if err != nil {
		return nil, err
	}
	c.rootPassword, _, _ = strings.Cut(string(password), "\n")
	c.rootPassword = strings.TrimSuffix(c.rootPassword, "\r")
	if strings.ContainsFunc(c.rootPassword, func(r rune) bool { return r < ' ' }) {
		name, _ := given.get("root-password-file")
		return nil, fmt.Errorf("--cloud-init root-password-file: the first line of %s is not a password", name)
	}
	c.rootKeys, c.userKeys = keyLines(rootKey), keyLines(userKey)
	if generate {
		if len(password) > 0 {
			return nil, errors.New("--cloud-init: root-password-file= and root-password-generate=yes exclude each other")
		}
		c.rootPassword, c.expires = rand.Text()[:16], true
	}
	if len(c.userData) > 0 && (c.rootPassword != "" || len(c.rootKeys) > 0 || c.disable) {
		g.warn("--cloud-init: user-data= is taken as it is: root-password-file=, root-password-generate=, root-ssh-key= and disable= do nothing beside it")
		c.rootPassword, c.expires, c.rootKeys, c.disable = "", false, nil, false
	}
	if _, err := c.build(); err != nil {
		return nil, fmt.Errorf("--cloud-init: %w", err)
	}
	return c, nil
}

// maxAnswer bounds the files of --cloud-init and --unattended.
const maxAnswer = 1 << 20

// keyLines are the keys of a file, without comments.
func keyLines(data []byte) []string {
	var out []string
	for _, line := range strings.Split(string(data), "\n") {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return out
}

// build makes the seed.
func (c *cloudInit) build() ([]byte, error) {
	cfg := seed.Config{InstanceID: "i-" + strings.ToLower(rand.Text()[:12]), SSHKeys: c.userKeys, MetaData: c.metaData, NetworkConfig: c.network}
	if name := c.g.dom.Get("name"); name != "" {
		cfg.Hostname = names.Hostname(name)
	}
	for _, k := range c.rootKeys {
		if err := seed.CheckKey(k); err != nil {
			return nil, err
		}
	}
	cfg.UserData = c.userData
	if len(cfg.UserData) == 0 {
		cfg.UserData = c.cloudConfig()
	}
	return seed.Build(cfg)
}

// cloudConfig is the user-data where none was given.
func (c *cloudInit) cloudConfig() []byte {
	var b strings.Builder
	b.WriteString("#cloud-config\n")
	if c.rootPassword != "" {
		fmt.Fprintf(&b, "chpasswd:\n  expire: %v\n  list:\n  - %s\n", c.expires, yamlString("root:"+c.rootPassword))
		b.WriteString("disable_root: false\n")
	}
	if len(c.rootKeys) > 0 {
		b.WriteString("users:\n- default\n- name: root\n  ssh_authorized_keys:\n")
		for _, k := range c.rootKeys {
			b.WriteString("  - " + yamlString(k) + "\n")
		}
	}
	if c.disable {
		b.WriteString("runcmd:\n- [touch, /etc/cloud/cloud-init.disabled]\n")
	}
	return []byte(b.String())
}

// yamlString quotes a string so that YAML takes it as it is.
func yamlString(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

func (c *cloudInit) write(_ context.Context, w io.Writer) error {
	data, err := c.build()
	if err == nil {
		_, err = w.Write(data)
	}
	return err
}

// tell says the password that was made up: nobody else knows it.
func (c *cloudInit) tell(g *guest) {
	if c.expires {
		_, _ = fmt.Fprintf(g.std.Out, "Password for first root login is: %s\n", c.rootPassword)
	}
}

// loginName is the name of the user who runs this, for --unattended.
func loginName() string {
	for _, key := range []string{"SUDO_USER", "LOGNAME", "USER"} {
		if name := os.Getenv(key); name != "" && name != "root" {
			return name
		}
	}
	return ""
}
