package virtinstall

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// run is one command line, from its words to the machine. Nothing outside of
// this process is changed before the last stage.
func run(ctx context.Context, words []string, std Streams) error {
	a, err := parseArguments(words)
	if err != nil {
		return err
	}
	if done, err := list(a, std); done || err != nil {
		return err
	}
	g := newGuest(a, nil, std)
	if err := convertOld(g); err != nil {
		return err
	}
	if g.host, err = connect(ctx, cmp.Or(a.get("connect"), os.Getenv(envConnect))); err != nil {
		return err
	}
	defer func() { _ = g.host.close() }()
	if where, ok := a.last("test-media-detection"); ok {
		return g.detectOnly(ctx, where)
	}
	in, err := g.build(ctx)
	if err != nil {
		return err
	}
	if a.has("print-xml") || a.has("dry-run") {
		return g.print(ctx, in)
	}
	return execute(ctx, g, in)
}

// envConnect is the variable with the URI for a command line without --connect,
// as for the verbs of lamina.
const envConnect = "LAMINA_CONNECT"

// build makes the documents of what the command line asks for, in the
// original's order of effects, as one stage uses what earlier ones decided.
func (g *guest) build(ctx context.Context) (*installation, error) {
	if name := g.args.get("reinstall"); name != "" {
		return g.reinstall(ctx, name)
	}
	in, err := newInstallation(g)
	if err != nil {
		return nil, err
	}
	stages := []func(context.Context, *installation) error{
		g.choosePlatform, // arch, machine, hypervisor: what the host can
		g.applyOptions,   // what the options say
		g.chooseOS,       // --osinfo, or what the installation media are
		in.prepare,       // what the installation needs of the machine
		g.setDefaults,    // what the guest OS wants and virt-install adds
		g.validate,       // what is missing, what cannot work
	}
	for _, stage := range stages {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := stage(ctx, in); err != nil {
			return nil, err
		}
	}
	return in, nil
}

// options are all options with sub-options, in the order in which they take
// effect.
func options() []option {
	list := []option{memoryOption(), cpuOption(), vcpusOption(), metadataOption(), bootOption(), idmapOption()}
	list = append(list, deviceOptions()...)
	return append(list, iothreadsOption(), seclabelOption(), keywrapOption(), cputuneOption(), numatuneOption(),
		memtuneOption(), blkiotuneOption(), memorybackingOption(), featuresOption(), clockOption(), pmOption(),
		eventsOption(), resourceOption(), sysinfoOption(), qemuCommandlineOption(), launchSecurityOption())
}

// applyOptions makes what the options say.
func (g *guest) applyOptions(ctx context.Context, _ *installation) error {
	if name := g.args.get("name"); name != "" {
		g.dom.Need("name").Text = name
	}
	if uuid := g.args.get("uuid"); uuid != "" {
		g.dom.Need("uuid").Text = uuid
	}
	if text := g.args.get("description"); text != "" {
		g.dom.Need("description").Text = text
	}
	for _, o := range options() {
		if err := g.use(ctx, o); err != nil {
			return err
		}
	}
	return g.parseXMLEdits()
}

// print prints the documents, or says that all is well.
func (g *guest) print(ctx context.Context, in *installation) error {
	first, final, err := g.documents(ctx, in)
	if err != nil {
		return err
	}
	step, asked := g.args.last("print-xml")
	if !asked {
		docs := []*domxml.Element{final}
		if first != nil {
			docs = append(docs, first)
		}
		if err := g.host.check(g, docs...); err != nil {
			return err
		}
		g.say("Dry run completed successfully")
		return nil
	}
	if first == nil {
		first, final = final, nil
	}
	var docs []*domxml.Element
	switch step {
	case "all":
		docs = append(docs, first)
		if final != nil {
			docs = append(docs, final)
		}
	case "1":
		docs = append(docs, first)
	case "2":
		if final == nil {
			return errors.New("Requested installation does not have XML step 2")
		}
		docs = append(docs, final)
	default:
		return fmt.Errorf("Unknown XML step request '%s', must be 1, 2, or all", step)
	}
	var out strings.Builder
	for _, d := range docs {
		out.WriteString(document(d))
	}
	_, err = fmt.Fprintln(g.std.Out, out.String())
	return err
}

// detectOnly prints what the installation media at a place are.
func (g *guest) detectOnly(ctx context.Context, where string) error {
	g.args.values["location"] = []string{where}
	in, err := newInstallation(g)
	if err != nil {
		return err
	}
	if err := g.choosePlatform(ctx, in); err != nil {
		return err
	}
	if err := g.resolvePlatform(); err != nil {
		return err
	}
	name, err := in.detect(ctx, g)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(g.std.Out, none(name))
	return err
}
