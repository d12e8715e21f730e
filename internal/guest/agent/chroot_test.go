package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// small makes the folder of a guest that has busybox and the given files, and
// returns what runs functions of the identity script in it. Programs that would
// change the host are not there.
func small(t *testing.T, files map[string]string) (root string, run func(vars, steps string) string) {
	t.Helper()
	root = t.TempDir()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte, mode os.FileMode) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("bin/busybox", data, 0o755)
	for _, a := range []string{"sh", "rm", "mv", "ln", "mkdir", "cat"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", a)); err != nil {
			t.Fatal(err)
		}
	}
	write("bin/chown", []byte("#!/bin/sh\n"), 0o755)
	write("bin/chpasswd", []byte("#!/bin/sh\nread -r line; echo \"$line\" | { read -r l; echo \"stdin $l\"; }; echo chpasswd \"$@\"\n"), 0o755)
	write("bin/useradd", []byte("#!/bin/sh\necho useradd \"$@\"\nfor u; do :; done\necho \"$u:x:1001:1001::/home/$u:/bin/sh\" >>/etc/passwd\nmkdir -p /home/$u\n"), 0o755)
	for name, text := range files {
		write(name, []byte(text), 0o644)
	}
	for _, d := range []string{"tmp", "dev", "home"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("dev/null", nil, 0o666)
	return root, func(vars, steps string) string {
		cmd := exec.CommandContext(testContext(t), "/bin/busybox", "sh", "-c", vars+library()+steps)
		cmd.Path, cmd.Dir = "/bin/busybox", "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		if os.Geteuid() != 0 {
			cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", steps, err, out)
		}
		return string(out)
	}
}

func (id Identity) testVars(t *testing.T) string {
	t.Helper()
	vars, err := id.variables(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return vars
}

func file(t *testing.T, parts ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestFiles runs what the script does to files in a folder, twice: the second
// time must change nothing more.
func TestFiles(t *testing.T) {
	id := testIdentity(t)
	id.Seed.Password = "secret"
	key := "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsGdXtDLHMK3iI4lNqVtPAbpkyGIDTfjcBvRrhmLXmq it's bob"
	id.Seed.SSHKeys = []string{key, " " + key + " "}
	root, run := small(t, map[string]string{
		"etc/hosts":                                      "127.0.0.1 localhost\n127.0.1.1\told old\n::1 ip6\n127.0.1.1 older\nlast",
		"etc/hostname":                                   "old\n",
		"etc/machine-id":                                 "00\n",
		"var/lib/dbus/machine-id":                        "00\n",
		"etc/passwd":                                     "root:x:0:0:root:/root:/bin/sh\n",
		"etc/group":                                      "root:x:0:\nsudo:x:27:\nadm:x:4:\n",
		"etc/ssh/ssh_host_ed25519_key":                   strings.Repeat("old\n", 500),
		"etc/ssh/ssh_host_dsa_key":                       "old",
		"etc/ssh/ssh_host_rsa_key":                       "old",
		"etc/ssh/ssh_host_rsa_key.pub":                   "old",
		"etc/ssh/sshd_config.d/x":                        "",
		"etc/sudoers.d/x":                                "",
		"var/lib/cloud/data/instance-id":                 "i-old\n",
		"var/lib/cloud/instances/i-old/sem/config_ssh":   "",
		"var/lib/cloud/instances/i-old/cloud-config.txt": "hostname: old",
		"var/lib/cloud/instances/i-old/scripts/runcmd":   "old",
		"var/lib/cloud/data/set-hostname":                "{}",
		"var/lib/systemd/random-seed":                    "old",
		"etc/systemd/network/10-cloud-init-eth0.network": "old",
		"run/lamina-agent/facts":                         "fact_network=networkd\nfact_groups='adm sudo nogroup'\nfact_shell=/bin/sh\n",
		"run/systemd/network/10-lamina.network":          "prepared",
		"etc/dropbear/dropbear_rsa_host_key":             "old",
		"etc/iscsi/initiatorname.iscsi":                  "# note\nInitiatorName=iqn.1993-08.org.debian:01:old\n",
		"etc/nvme/hostid":                                "old\n",
		"etc/nvme/hostnqn":                               "old\n",
		"var/lib/NetworkManager/secret_key":              "old",
		"var/lib/dhcpcd/duid":                            "old",
		"var/lib/dhcpcd/secret":                          "old",
		"etc/dhcpcd.duid":                                "old",
		"etc/dhcpcd.secret":                              "old",
		"var/lib/systemd/credential.secret":              "old",
	})
	// What a guest in use has encrypted needs its key.
	secret := filepath.Join(root, "var/lib/systemd/credential.secret")
	run("in_use=1\n", "forget_secrets")
	if _, err := os.Stat(secret); err != nil {
		t.Error(err)
	}
	run("in_use=\n", "forget_secrets")
	for _, gone := range []string{"var/lib/systemd/credential.secret", "var/lib/NetworkManager/secret_key", "var/lib/dhcpcd/duid", "var/lib/dhcpcd/secret", "etc/dhcpcd.duid", "etc/dhcpcd.secret"} {
		if _, err := os.Lstat(filepath.Join(root, gone)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want none", gone, err)
		}
	}
	if err := os.Symlink("/var/lib/cloud/instances/i-old", filepath.Join(root, "var/lib/cloud/instance")); err != nil {
		t.Fatal(err)
	}
	const steps = "exec 2>&1; renew_machine_id; renew_hostname 2>/dev/null; network; renew_ssh; renew_user; keep_instance"
	out := run(id.testVars(t), steps)
	for _, want := range []string{"=network networkd", "useradd -m -s /bin/sh -G adm,sudo bob", "stdin bob:$6$", "chpasswd -e", "=user bob"} {
		if !strings.Contains(out, want) {
			t.Errorf("it did not say %q:\n%s", want, out)
		}
	}
	// Accounts that are there get no more rights, and in a copy none comes back.
	if out := run("user= ssh_keys= hash= fact_user=\n", "find_user() { home=/home/$1 uid=1000; }; default_user() { echo eve; }; may_sudo() { echo sudo $1; }; renew_user"); strings.Contains(out, "sudo") || !strings.Contains(out, "=user eve") {
		t.Errorf("an account that nobody asked for: %s", out)
	}
	if out := run("user= ssh_keys= hash= in_use=1\n", "find_user() { return 1; }; default_user() { echo eve; }; add_user() { echo added $1; }; renew_user"); strings.Contains(out, "added") {
		t.Errorf("an account in a copy: %s", out)
	}
	hostUUID := fmt.Sprintf("%s-%s-%s-%s-%s", id.MachineID[:8], id.MachineID[8:12], id.MachineID[12:16], id.MachineID[16:20], id.MachineID[20:])
	check := func() {
		t.Helper()
		for name, want := range map[string]string{
			"etc/hosts":                                "127.0.0.1 localhost\n127.0.1.1 web.example.org web\n::1 ip6\nlast\n",
			"etc/hostname":                             "web\n",
			"etc/machine-id":                           id.MachineID + "\n",
			"etc/iscsi/initiatorname.iscsi":            "# note\nInitiatorName=iqn.1993-08.org.debian:01:" + id.MachineID[:12] + "\n",
			"etc/nvme/hostid":                          hostUUID + "\n",
			"etc/nvme/hostnqn":                         "nqn.2014-08.org.nvmexpress:uuid:" + hostUUID + "\n",
			"var/lib/dbus/machine-id":                  id.MachineID + "\n",
			"home/bob/.ssh/authorized_keys":            key + "\n",
			"etc/sudoers.d/90-cloud-init-users":        "# User rules for bob\nbob ALL=(ALL) NOPASSWD:ALL\n",
			"var/lib/cloud/data/instance-id":           "i-1\n",
			"var/lib/cloud/instance/sem/config_ssh":    "",
			"var/lib/cloud/data/previous-instance-id":  "i-old\n",
			"etc/ssh/sshd_config.d/50-cloud-init.conf": "PasswordAuthentication yes\n",
		} {
			path := filepath.Join(root, name)
			if strings.HasPrefix(name, "var/lib/cloud/instance/") {
				path = filepath.Join(root, "var/lib/cloud/instances/i-1/sem/config_ssh")
			}
			if got := file(t, path); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		if got, err := os.Readlink(filepath.Join(root, "var/lib/cloud/instance")); err != nil || got != "/var/lib/cloud/instances/i-1" {
			t.Errorf("the instance is %q, %v", got, err)
		}
		for _, gone := range []string{"etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_host_rsa_key.pub", "etc/ssh/ssh_host_dsa_key", "var/lib/cloud/instances/i-old", "var/lib/cloud/instances/i-1/cloud-config.txt", "var/lib/cloud/instances/i-1/scripts", "var/lib/cloud/data/set-hostname", "etc/systemd/network/10-cloud-init-eth0.network", "etc/dropbear/dropbear_rsa_host_key"} {
			if _, err := os.Lstat(filepath.Join(root, gone)); err == nil {
				t.Errorf("%s is still there", gone)
			}
		}
		public, _ := id.HostKeys.Public()
		for i, kind := range []string{"ed25519", "ecdsa"} {
			signer, err := ssh.ParsePrivateKey([]byte(file(t, root, "etc/ssh/ssh_host_"+kind+"_key")))
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))); got != public[i] {
				t.Errorf("the private %s key is of %s", kind, got)
			}
			if got := file(t, root, "etc/ssh/ssh_host_"+kind+"_key.pub"); got != public[i]+"\n" {
				t.Errorf("the public %s key is %s", kind, got)
			}
		}
		if st, err := os.Stat(filepath.Join(root, "etc/ssh/ssh_host_ecdsa_key")); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("mode of a new private key: %v, %v", st.Mode(), err)
		}
		if st, err := os.Stat(filepath.Join(root, "etc/sudoers.d/90-cloud-init-users")); err != nil || st.Mode().Perm() != 0o440 {
			t.Errorf("mode of the sudo rules: %v, %v", st.Mode(), err)
		}
		dropED, dropEC, err := id.HostKeys.dropbear()
		if err != nil {
			t.Fatal(err)
		}
		if file(t, root, "etc/dropbear/dropbear_ed25519_host_key") != string(dropED) || file(t, root, "etc/dropbear/dropbear_ecdsa_host_key") != string(dropEC) {
			t.Error("dropbear's keys came out differently")
		}
		if network := file(t, root, "etc/systemd/network/10-lamina-card0.network"); !strings.Contains(network, "MACAddress="+testMAC+"\n") || !strings.Contains(network, "ClientIdentifier=mac\n") {
			t.Errorf("the network's file: %s", network)
		}
	}
	check()
	if again := run(id.testVars(t), steps); strings.Contains(again, "useradd") {
		t.Errorf("the second time: %s", again)
	}
	check()
}

// Without a user in the seed the keys are for the one that the image has.
func TestDefaultUser(t *testing.T) {
	id := testIdentity(t)
	id.Seed.User = ""
	_, run := small(t, map[string]string{"etc/passwd": "root:x:0:0::/root:/bin/sh\nnobody:x:65534:1::/:/x\ndebian:x:1000:1000::/home/debian:/bin/sh\n", "etc/group": ""})
	if out := run(id.testVars(t), "renew_user"); !strings.Contains(out, "=user debian\n") {
		t.Errorf("%q", out)
	}
	_, run = small(t, map[string]string{"etc/passwd": "root:x:0:0::/root:/bin/sh\n", "etc/group": ""})
	if out := run(id.testVars(t), "renew_user"); !strings.Contains(out, "=user root\n") {
		t.Errorf("%q", out)
	}
	_, run = small(t, map[string]string{"etc/passwd": "root:x:0:0::/root:/bin/sh\n", "etc/group": "", "run/lamina-agent/facts": "fact_user=fedora\n"})
	if out := run(id.testVars(t), "renew_user"); !strings.Contains(out, "useradd") || !strings.Contains(out, "=user fedora\n") {
		t.Errorf("%q", out)
	}
}
