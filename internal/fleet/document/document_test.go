package document

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/fleet"
	"github.com/lamina-vm/lamina/internal/vm"
)

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqfZmFrZWZha2VmYWtlZmFrZWZha2VmYWtlZmFrZWZh me@here"

const whole = `# A shop.
name: shop
groups:
  - name: web
    names: w-{01..10}
    template: debian:web
    count: 3
    cpus: 2
    memory: 2G
    diskSize: 10G
    bus: virtio
    cache: none
    accel: auto
    machine: q35
    vnc: none
    ksm: true
    balloon: true
    user: admin
    password: s3cret
    sshKeys:
      - ` + key + `
      - keys/more.pub
    userDataFile: web.yaml
    userDataTemplate: true
    labels: {tier: front, 1: one}
    warm: auto
    ports: ["8080:80", 9090, "0.0.0.0:5353:53/udp"]
    rollout: {surge: 2, maxUnavailable: 1}
    health: {check: http, port: 80, path: /up, timeout: 90s, interval: 500ms}
  - {name: db, template: debian, count: 1, warm: cold, noSeed: true}
  - name: cache
    template: debian
    count: 0
    memory: 512
    userData: |
      #cloud-config
      packages: [redis]
`

func folder(t *testing.T) string {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"fleet.yaml": whole, "web.yaml": "#cloud-config\n", "keys/more.pub": "# mine\n" + key + "\n\n",
		"keys/private": "-----BEGIN OPENSSH PRIVATE KEY-----\n", "keys/none": "# none\n", "keys/bad": "ssh-ed25519 !!!\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestRead(t *testing.T) {
	got, err := Read(filepath.Join(folder(t), "fleet.yaml"), nil)
	if err != nil {
		t.Fatal(err)
	}
	web := api.FleetGroup{Name: "web", Names: "w-{01..10}", Template: "debian:web", Count: 3,
		Ports: []vm.Forward{{Proto: "tcp", HostAddr: "127.0.0.1", HostPort: 8080, GuestPort: 80},
			{Proto: "tcp", HostAddr: "127.0.0.1", GuestPort: 9090}, {Proto: "udp", HostAddr: "0.0.0.0", HostPort: 5353, GuestPort: 53}},
		Rollout: api.Rollout{Surge: 2, MaxUnavailable: 1},
		Health:  api.Health{Check: "http", Port: 80, Path: "/up", Timeout: 90 * time.Second, Interval: 500 * time.Millisecond}}
	web.MachineConfig = api.MachineConfig{CPUs: 2, Memory: 2 << 30, DiskSize: 10 << 30, Bus: vm.BusVirtio, Cache: vm.CacheNone, Accel: vm.AccelAuto,
		Machine: vm.MachineQ35, VNC: vm.VNCNone, KSM: true, Balloon: true, User: "admin", Password: "s3cret", SSHKeys: []string{key, key},
		UserData: []byte("#cloud-config\n"), UserDataTemplate: true, Labels: map[string]string{"tier": "front", "1": "one"}}
	db := api.FleetGroup{Name: "db", Template: "debian", Count: 1, Warm: api.WarmNever}
	db.NoSeed = true
	cache := api.FleetGroup{Name: "cache", Template: "debian"}
	cache.Memory, cache.UserData = 512<<20, []byte("#cloud-config\npackages: [redis]\n")
	want := fleet.Complete(api.Fleet{Name: "shop", Groups: []api.FleetGroup{web, db, cache}})
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	if got, err = Read("-", strings.NewReader("name: a\ngroups: []\n")); err != nil || got.Name != "a" {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestAlias: what is the same is written once.
func TestAlias(t *testing.T) {
	got, err := Parse("f", ".", []byte("name: a\ngroups:\n- {name: a, template: t, count: 1, health: &h {check: none}}\n- {name: b, template: t, count: 2, health: *h}\n"))
	if err != nil || got.Groups[1].Health.Check != fleet.CheckNone {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestMistakes: each error names the file, the line, the field and what to do.
func TestMistakes(t *testing.T) {
	dir := folder(t)
	group := func(more string) string {
		return "name: shop\ngroups:\n- name: web\n  template: t\n  count: 2\n" + more
	}
	for name, c := range map[string]struct{ text, want string }{
		"empty":            {"", "f.yaml: it is empty"},
		"comment":          {"# x\n", "f.yaml: it is empty"},
		"nothing":          {"---\n", "f.yaml:2: nothing is not a mapping"},
		"not yaml":         {"name: [\n", "f.yaml:1: it is not YAML: did not find expected node content"},
		"a tab":            {"name: a\n\tgroups: 1\n", "f.yaml:2: it is not YAML: found a tab character that violates indentation; indent with spaces"},
		"two":              {"name: a\ngroups: []\n---\nname: b\n", "f.yaml:3: a second document"},
		"list":             {"- a\n", "f.yaml:1: a list is not a mapping"},
		"no name":          {"groups: []\n", "f.yaml:1: name: the fleet's name is missing"},
		"no groups":        {"name: a\n", "f.yaml:1: groups: it is missing"},
		"bad name":         {"name: a b\ngroups: []\n", "f.yaml:1: name: invalid name: fleet \"a b\": ' ' is not allowed"},
		"groups":           {"name: a\ngroups: {}\n", "f.yaml:2: groups: a mapping is not a list: begin each of its values with \"- \""},
		"top key":          {"name: a\ngroup: []\n", `f.yaml:2: unknown key "group"; did you mean groups?`},
		"key":              {group("  memroy: 2G\n"), `f.yaml:6: groups[0]: unknown key "memroy"; did you mean memory?`},
		"key, other style": {group("  user-data: x\n"), `did you mean userData?`},
		"key, none near":   {group("  colour: x\n"), `unknown key "colour"; it is one of accel, balloon,`},
		"twice":            {group("  count: 3\n"), "f.yaml:6: groups[0].count: it is there twice"},
		"merge":            {group("  <<: {cpus: 1}\n"), "the key << is not supported"},
		"list as a key":    {group("  [a]: x\n"), "a key is a word, not a list"},
		"no template":      {"name: a\ngroups:\n- name: web\n  count: 1\n", "f.yaml:3: groups[0].template: it is missing: name the template"},
		"no count":         {"name: a\ngroups:\n- name: web\n  template: t\n", "f.yaml:3: groups[0].count: it is missing: say how many"},
		"count":            {"name: a\ngroups:\n- name: web\n  template: t\n  count: many\n", `f.yaml:5: groups[0].count: "many" is not a whole number`},
		"count, null":      {"name: a\ngroups:\n- name: web\n  template: t\n  count:\n", `f.yaml:5: groups[0].count: nothing is not a whole number`},
		"count, text":      {"name: a\ngroups:\n- name: web\n  template: t\n  count: \"3\"\n", `"3" is not a whole number`},
		"count, negative":  {"name: a\ngroups:\n- name: web\n  template: t\n  count: -1\n", `f.yaml:5: groups[0].count: -1 machines`},
		"count, huge":      {"name: a\ngroups:\n- name: web\n  template: t\n  count: 1000000\n", `at most 2000 are allowed: make several fleets`},
		"size":             {group("  memory: 2 cows\n"), `f.yaml:6: groups[0].memory: size "2 cows": unknown suffix`},
		"size, nothing":    {group("  memory: 0\n"), `leave it out for the default`},
		"size, odd":        {group("  diskSize: 100\n"), `groups[0].diskSize: 100 bytes is not a multiple of 512`},
		"bool":             {group("  ksm: maybe\n"), `groups[0].ksm: "maybe" is not true or false`},
		"text":             {group("  user: [a]\n"), `groups[0].user: a list is not a text`},
		"binary":           {group("  user: !!binary aGk=\n"), `binary data is not supported`},
		"bus":              {group("  bus: virtoi\n"), `f.yaml:6: groups[0].bus: "virtoi" is not one of virtio, virtio-scsi, sata, ide; did you mean virtio?`},
		"warm":             {group("  warm: hot\n"), `groups[0].warm: "hot" is not one of cold, warm`},
		"vnc":              {group("  vnc: 0.0.0.0:1\n"), `groups[0].vnc: "0.0.0.0:1": the machines of a fleet cannot all have one address`},
		"hostname":         {group("  hostname: x\n"), `groups[0].hostname: 2 machines cannot all be called "x"`},
		"names":            {group("  names: 'w{1..1}'\n"), `f.yaml:6: groups[0].names: invalid name: w{1..1} makes 1 names, which are too few for 2 machines`},
		"names, brace":     {group("  names: 'w{1..'\n"), `{ without }`},
		"port":             {group("  ports:\n  - 80\n  - x\n"), `f.yaml:8: groups[0].ports[1]: port forward "x"`},
		"ports":            {group("  ports: 80\n"), `groups[0].ports: "80" is not a list`},
		"ports that touch": {group("  ports: ['8080:80', '8081:81']\n"), `groups[0].ports[1]: host ports 8081 to 8083 are needed, of which 8080 to 8082 are also those of ports[0]`},
		"port too high":    {group("  ports: ['65534:80']\n"), `3 machines from host port 65534 on would need port 65536: begin lower`},
		"rollout":          {group("  rollout: {surge: 0}\n"), `f.yaml:6: groups[0].rollout: surge and maxUnavailable are both 0`},
		"rollout, key":     {group("  rollout: {max: 0}\n"), `groups[0].rollout: unknown key "max"`},
		"rollout, less":    {group("  rollout: {surge: 1, maxUnavailable: -2}\n"), `groups[0].rollout.maxUnavailable: -2 is not 0 to`},
		"health":           {group("  health: {check: htpt}\n"), `groups[0].health.check: "htpt" is not one of login, ready, agent, tcp, http, none; did you mean http?`},
		"health, port":     {group("  health: {check: tcp, port: 80}\n"), `groups[0].health.port: the guest's port 80 is not forwarded, so it cannot be asked: add 80 to the ports`},
		"health, no port":  {group("  health: {check: http}\n"), `the check http needs the guest's port`},
		"health, udp":      {group("  ports: ['80/udp']\n  health: {check: tcp, port: 80}\n"), `not forwarded`},
		"health, path":     {group("  health: {check: http, port: 22, path: up}\n"), `"up" is not the path of a URL`},
		"health, no path":  {group("  health: {check: tcp, port: 22, path: /}\n"), `the check tcp has no path`},
		"health, timeout":  {group("  health:\n    timeout: 5\n"), `f.yaml:7: groups[0].health.timeout: "5" is not a time: write a number and a unit`},
		"health, interval": {group("  health: {interval: 1ms}\n"), `groups[0].health.interval: 1ms is not 10ms to the timeout`},
		"label":            {group("  labels: {fleet: x}\n"), `groups[0].labels: fleet is set by the fleet itself`},
		"label, twice":     {group("  labels: {a: x, a: y}\n"), `f.yaml`},
		"labels":           {group("  labels: [a]\n"), `a list is not a mapping of labels`},
		"two user-datas":   {group("  userData: x\n  userDataFile: web.yaml\n"), `f.yaml:7: groups[0].userDataFile: there is userData too`},
		"no user-data":     {group("  userDataFile: none.yaml\n"), `f.yaml:6: groups[0].userDataFile: stat ` + dir + `/none.yaml: no such file`},
		"folder":           {group("  userDataFile: keys\n"), `is not a regular file`},
		"template of none": {group("  userDataTemplate: true\n"), `f.yaml:6: groups[0].userDataTemplate: there is no userData`},
		"no seed":          {group("  noSeed: true\n  user: me\n"), `groups[0].noSeed: user, keys, password and user-data reach the guest by the seed`},
		"private key":      {group("  sshKeys: [keys/private]\n"), `groups[0].sshKeys[0]: keys/private is a private key`},
		"no key":           {group("  sshKeys: [keys/none]\n"), `keys/none holds no key`},
		"bad key":          {group("  sshKeys: [keys/bad]\n"), `f.yaml:6: groups[0].sshKeys[0]: `},
		"two groups":       {group("- {name: web, template: t, count: 1}\n"), `f.yaml:6: groups[1].name: groups[0] has the name web too`},
		"same machines":    {group("- {name: web2, names: 'web-{2..3}', template: t, count: 1}\n"), `groups[1].names: machine web-2 is of the group web too`},
		"surge's name":     {group("- {name: web-surge, template: t, count: 1}\n"), `groups[1].names: machine web-surge-1 is of the group web too`},
		"too many":         {"name: a\ngroups:\n- {name: a, template: t, count: 1500}\n- {name: b, template: t, count: 1500}\n", `f.yaml:2: groups: 3002 machines with their surge: a fleet has at most 2000`},
		"group's name":     {"name: a\ngroups:\n- {name: " + strings.Repeat("x", 55) + ", template: t, count: 1}\n", `its machines' names would be 3 characters too long`},
		"template":         {"name: a\ngroups:\n- {name: a, template: /x.qcow2, count: 1}\n", `groups[0].template: "/x.qcow2" is not the name or digest of a template`},
	} {
		_, err := Parse("f.yaml", dir, []byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "f.yaml") {
			t.Errorf("%s: %v\nwant %s", name, err, c.want)
		}
	}
}

// TestManyMistakes: several are told at once, and not without end.
func TestManyMistakes(t *testing.T) {
	_, err := Parse("f", ".", []byte("name: a\ngroups:\n"+strings.Repeat("- {nmae: x, cuont: 1}\n", 100)))
	if n := strings.Count(err.Error(), "\n") + 1; n != maxErrors+1 || !strings.Contains(err.Error(), "f:3: groups[0]: ") {
		t.Errorf("%d lines:\n%v", n, err)
	}
	var one *Error
	if !errors.As(err, &one) || one.Line != 3 {
		t.Errorf("%+v", one)
	}
}

// TestBounds: aliases within aliases do not take the memory of what they stand for.
func TestBounds(t *testing.T) {
	for name, text := range map[string]string{
		"long":  "name: a\n#" + strings.Repeat("x", maxDocument),
		"ports": "name: a\ngroups:\n- {name: g, template: t, count: 1, ports: &p [" + strings.Repeat("80,", 10_000) + "]}\n" + strings.Repeat("- {name: h, template: t, count: 1, ports: *p}\n", 250),
		"deep":  "name: " + strings.Repeat("[", 20_000),
	} {
		began := time.Now()
		if _, err := Read("-", strings.NewReader(text)); err == nil {
			t.Errorf("%s: no error", name)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s took %s", name, took)
		}
	}
}

// FuzzParse: a fleet that passes its own check, or an error that says where.
func FuzzParse(f *testing.F) {
	f.Add(whole)
	f.Add("name: a\ngroups:\n- &a {name: b, template: t, count: 1}\n- *a\n")
	f.Add("a: &a [*a]\n")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := Parse("f", t.TempDir(), []byte(text))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f:") || got.Name != "" {
				t.Errorf("%q: %+v, %v", text, got, err)
			}
			return
		}
		if err := fleet.Check(got); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	})
}
