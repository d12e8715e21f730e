package fleet

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/guest/agent"
	"github.com/lamina-vm/lamina/internal/guestimage"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/qemu"
)

var (
	kills    = flag.Int("kills", 15, "rounds of TestKillLoop")
	killSeed = flag.Uint64("seed", 1, "seed of TestKillLoop's choices; 0: another one each time, which is printed")
	keepHome = flag.Bool("keep", false, "leave the home of a TestKillLoop that failed, and what runs in it")
)

// TestKillLoop kills the command, the daemon and QEMU processes (SIGKILL), alone and
// together, at random instants of what makes, changes and removes machines and warm
// units, again and again in one home. After each kill the next daemon comes, and then:
// no layer, and no RAM of a warm unit, has changed; no machine is lost but those that
// were being removed, and none has lost its disk or what was written to it; nothing is left that
// belongs to nothing; and no two processes have one disk. `make test-kill` runs it at length.
func TestKillLoop(t *testing.T) {
	l := newKillLoop(t)
	for range *kills {
		l.round++
		op := l.choose()
		if _, tried := l.took[op.name]; !tried {
			l.runWhole(op)
			l.round++
		}
		l.runKilled(op)
		if l.round%25 == 0 {
			l.verify()
		}
	}
	l.verify()
	l.report()
}

// killLoop is one home and what is known of it.
type killLoop struct {
	t   *testing.T
	h   testHome
	c   *client.Client
	rng *rand.Rand

	round     int
	version   int    // of the fleet's user-data
	documents string // folder
	world     world  // as of the end of the last round
	known     map[string]*machineSeen
	sealed    map[string]sealed
	took      map[string]time.Duration // an undisturbed run, by operation

	last   string // what was done last
	counts map[string]*tally
}

// machineSeen is what is known of a machine that was listed.
type machineSeen struct {
	marks   map[int]byte // slot to value: what was written to its disk
	checked time.Time    // the disk, as it was when it was checked last
}

// tally counts the kills within an operation, and those that came before its end.
type tally struct {
	rounds, inTime int
	victims        map[string]int
}

const (
	// markSize is the size of what is written, in bytes; the slots lie between the
	// partition table and the first partition, where nothing of the guest's is.
	markSize             = 512
	firstSlot, lastSlot  = 128, 2047
	maxMarks             = 12
	imageSectorsBetween  = lastSlot - firstSlot + 1
	commandAfterKillTime = 3 * time.Minute
)

func newKillLoop(t *testing.T) *killLoop {
	seed := *killSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("again: go test ./test/fleet -run TestKillLoop -kills %d -seed %d", *kills, seed)
	h := newHome(t)
	l := &killLoop{t: t, h: h, c: client.New(h.home), rng: rand.New(rand.NewPCG(seed, 5)), documents: t.TempDir(),
		known: map[string]*machineSeen{}, sealed: map[string]sealed{}, took: map[string]time.Duration{}, counts: map[string]*tally{}}
	image := guestimage.Small(t)
	l.do("template", "import", image, "--name", "base", "--user", guestimage.User)
	l.do("template", "import", image, "--name", "other", "--user", guestimage.User, "--compress", "zstd")
	for _, template := range []string{"base", "other"} {
		l.do("clone", template, keeper+"-"+template, guestMemory)
	}
	l.remember()
	for _, m := range l.world.machines {
		l.markStopped(m)
	}
	return l
}

// choose picks an operation. Where there is too much, it is taken away.
func (l *killLoop) choose() operation {
	running, booting := 0, 0
	for _, m := range l.world.machines {
		switch {
		case m.Run != nil && m.State == api.Starting:
			booting++
		case m.Run != nil && !ofFleet(m):
			running++
		}
	}
	rm := slices.IndexFunc(operations, func(o operation) bool { return o.name == "rm" })
	if len(l.world.machines) > maxMachines || running > maxRunning || booting > 0 && l.rng.IntN(2) == 0 {
		return operations[rm]
	}
	sum := 0
	for _, o := range operations {
		sum += o.weight
	}
	n := l.rng.IntN(sum)
	for _, o := range operations {
		if n -= o.weight; n < 0 {
			return o
		}
	}
	panic("the weights do not add up")
}

// runWhole runs an operation undisturbed, to know how long it takes.
func (l *killLoop) runWhole(op operation) {
	l.t.Helper()
	job := op.prepare(l)
	l.last = fmt.Sprintf("round %d: %s, whole: lamina %s", l.round, op.name, strings.Join(job.args, " "))
	l.took[op.name] = l.h.run(l.t, 5*time.Minute, job.args...)
	l.check(job)
}

// runKilled runs an operation, kills what it chooses at an instant of it, and looks at
// what is left.
func (l *killLoop) runKilled(op operation) {
	l.t.Helper()
	job := op.prepare(l)
	took := l.took[op.name]
	delay := time.Duration(l.rng.Float64() * 1.1 * float64(took))
	if op.late && l.rng.IntN(2) == 0 {
		delay = time.Duration((0.8 + 0.3*l.rng.Float64()) * float64(took))
	}
	victims := []string{"command", "daemon", "qemu", "command+daemon", "daemon+qemu", "command+daemon+qemu"}[l.rng.IntN(6)]
	l.last = fmt.Sprintf("round %d: %s, %s killed after %s of about %s: lamina %s", l.round, op.name, victims,
		delay.Round(time.Millisecond), took.Round(time.Millisecond), strings.Join(job.args, " "))
	before := l.h.qemus(l.t)
	cmd := l.h.command(context.Background(), job.args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // however it ends
	}()
	inTime := true
	select {
	case <-time.After(delay):
	case <-ended:
		inTime = false
	}
	victims = l.kill(victims, cmd, before)
	select {
	case <-ended:
	case <-time.After(commandAfterKillTime):
		_ = cmd.Process.Kill()
		<-ended
		l.fatalf("the command does not end: %s", out.Bytes())
	}
	if cmd.ProcessState.Success() {
		l.took[op.name] = (3*l.took[op.name] + time.Since(begun)) / 4
	}
	l.count(op.name, victims, inTime)
	if strings.Contains(victims, "daemon") && l.rng.IntN(3) == 0 {
		l.killRecovery()
	}
	l.check(job)
	l.markSome()
}

// kill kills what victims says, and returns what of it there was.
func (l *killLoop) kill(victims string, cmd *exec.Cmd, before []process) string {
	var done []string
	qemu := func() bool {
		list := l.h.qemus(l.t)
		fresh := slices.DeleteFunc(slices.Clone(list), func(p process) bool { return slices.Contains(before, p) })
		if len(fresh) > 0 && l.rng.IntN(4) > 0 {
			list = fresh
		}
		if len(list) == 0 {
			return false
		}
		list[l.rng.IntN(len(list))].kill(l.t)
		return true
	}
	daemon := func() {
		for _, p := range l.h.daemons(l.t) {
			p.kill(l.t)
		}
	}
	for _, v := range strings.Split(victims, "+") {
		switch {
		case v == "command":
			_ = cmd.Process.Kill() // it may have ended
		case v == "daemon":
			daemon()
		case !qemu() && victims == "qemu":
			daemon()
			v = "daemon"
		}
		done = append(done, v)
	}
	return strings.Join(done, "+")
}

// killRecovery kills the next daemon too, while it finds out what there is.
func (l *killLoop) killRecovery() {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	cmd := l.h.command(ctx, "ls")
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	time.Sleep(time.Duration(l.rng.Int64N(int64(200 * time.Millisecond))))
	for _, p := range l.h.daemons(l.t) {
		p.kill(l.t)
	}
	_ = cmd.Wait() // it may have been told, or have lost its daemon
	l.last += "; the next daemon was killed too"
}

func (l *killLoop) count(op, victims string, inTime bool) {
	c := l.counts[op]
	if c == nil {
		c = &tally{victims: map[string]int{}}
		l.counts[op] = c
	}
	c.rounds++
	c.victims[victims]++
	if inTime {
		c.inTime++
	}
}

// check lets the next daemon come, waits until it has done what was left to do, and
// looks at everything.
func (l *killLoop) check(job task) {
	l.t.Helper()
	l.h.run(l.t, time.Minute, "ls")
	before := l.world
	now := l.settle()
	for _, m := range before.machines {
		if now.machine(m.ID) == nil && !slices.Contains(job.mayGo, m.Name) && !(job.fleet && ofFleet(m)) {
			l.fatalf("machine %s (%s) is lost", m.Name, m.ID)
		}
	}
	l.take(now, job.origin)
	l.checkSealed(now, l.round%10 == 0)
	for _, m := range now.machines {
		l.checkChain(now, m)
		l.checkImage(m)
	}
	l.sample(now, job)
}

// remember takes what there is now as known.
func (l *killLoop) remember() {
	l.t.Helper()
	l.take(l.settle(), "")
}

func (l *killLoop) take(now world, origin string) {
	known := map[string]*machineSeen{}
	for _, m := range now.machines {
		k := l.known[m.ID]
		if k == nil {
			k = &machineSeen{marks: map[int]byte{}}
			if o := l.known[origin]; o != nil && madeIn(l.round, m.Name) {
				for slot, v := range o.marks { // as the original was before
					k.marks[slot] = v
				}
			}
		}
		known[m.ID] = k
	}
	l.known, l.world = known, now
}

// sample reads what was written to the disks of the machines that were at stake, and of
// some others.
func (l *killLoop) sample(now world, job task) {
	l.t.Helper()
	for _, m := range now.machines {
		if m.ID == job.origin || madeIn(l.round, m.Name) || l.rng.IntN(8) == 0 {
			l.readMarks(m)
		}
	}
}

// markSome writes to the disks of some machines.
func (l *killLoop) markSome() {
	l.t.Helper()
	if m, ok := l.pick(func(m api.Machine) bool { return isStopped(m) && len(l.known[m.ID].marks) < maxMarks }); ok && l.rng.IntN(4) == 0 {
		l.markStopped(m)
	}
	if m, ok := l.pick(atLogin); ok && l.rng.IntN(2) == 0 {
		l.markRunning(m)
	}
}

// newMark chooses what to write where: a place of its own, or again one that was
// written before.
func (l *killLoop) newMark(m api.Machine) (slot int, value byte) {
	k := l.known[m.ID]
	slot = firstSlot + l.rng.IntN(imageSectorsBetween)
	if len(k.marks) >= maxMarks {
		for slot = range k.marks {
			break
		}
	}
	return slot, byte(1 + l.rng.IntN(255))
}

// markStopped writes to the disk of a machine that does not run.
func (l *killLoop) markStopped(m api.Machine) {
	l.t.Helper()
	slot, value := l.newMark(m)
	out, err := exec.CommandContext(l.t.Context(), "qemu-io", "-f", "qcow2",
		"-c", fmt.Sprintf("write -P %d %d %d", value, slot*markSize, markSize), "-c", "flush", m.Spec.Disks[0].Path).CombinedOutput()
	if err != nil {
		l.fatalf("write to the disk of machine %s: %v: %s", m.Name, err, out)
	}
	l.known[m.ID].marks[slot] = value
}

// markRunning has the guest of a machine write to its disk, and flush.
func (l *killLoop) markRunning(m api.Machine) {
	l.t.Helper()
	slot, value := l.newMark(m)
	ctx, cancel := context.WithTimeout(l.t.Context(), 2*time.Minute)
	defer cancel()
	i := slices.IndexFunc(m.Spec.Channels, func(c vm.Channel) bool { return c.Target == vm.ChannelLamina })
	if i < 0 {
		l.fatalf("machine %s has no channel to an agent", m.Name)
	}
	c, err := agent.Dial(ctx, filepath.Join(m.Dir, qemu.ChannelSocket(i)), "")
	if err != nil {
		l.fatalf("the agent of machine %s (%s): %v", m.Name, m.State, err)
	}
	defer func() { _ = c.Close() }() // the answer is there
	// Whatever comes of it, what the disk has there is not known before it is done.
	delete(l.known[m.ID].marks, slot)
	r, err := c.Run(ctx, fmt.Sprintf("dd of=/dev/vda bs=%d seek=%d conv=notrunc,fsync", markSize, slot), bytes.Repeat([]byte{value}, markSize))
	if err != nil || r.Status != 0 {
		l.fatalf("the guest of machine %s cannot write to its disk: %+v, %v", m.Name, r, err)
	}
	l.known[m.ID].marks[slot] = value
}

// verify has Lamina itself look at every layer and warm unit.
func (l *killLoop) verify() {
	l.t.Helper()
	for _, t := range l.world.templates {
		l.do("template", "verify", t.Digest)
	}
	l.checkSealed(l.world, true)
	for _, m := range l.world.machines {
		l.readMarks(m)
	}
	if testing.Verbose() {
		fmt.Printf("%s: round %d: %d machines, %d layers, %d warm units are whole\n", time.Now().Format(time.TimeOnly), l.round, len(l.world.machines), len(l.world.templates), len(l.world.units))
	}
}

// report prints what was killed.
func (l *killLoop) report() {
	l.t.Helper()
	sum, inTime := 0, 0
	for _, op := range operations {
		c := l.counts[op.name]
		if c == nil {
			continue
		}
		l.t.Logf("%-28s %4d kills, %4d before its end (it takes %s): %v", op.name, c.rounds, c.inTime, l.took[op.name].Round(time.Millisecond), c.victims)
		sum, inTime = sum+c.rounds, inTime+c.inTime
	}
	l.t.Logf("%-28s %4d kills, %4d before its end", "all", sum, inTime)
	if sum >= 100 && inTime*3 < sum { // of a few, chance may spare many
		l.t.Errorf("only %d of %d kills came in time", inTime, sum)
	}
}

// fatalf fails the test with what was done last and the daemon's last words.
func (l *killLoop) fatalf(format string, args ...any) {
	l.t.Helper()
	log, err := os.ReadFile(l.h.home.DaemonLog())
	if err != nil {
		log = []byte(err.Error())
	}
	if *keepHome {
		fmt.Printf("%s\n%s\nthe home is %s, the programs are in %s\n", l.last, fmt.Sprintf(format, args...), l.h.dir, l.h.bin)
		os.Exit(1)
	}
	l.t.Fatalf("%s\n%s\nthe daemon's log ends with:\n%s", l.last, fmt.Sprintf(format, args...), log[max(0, len(log)-8000):])
}
