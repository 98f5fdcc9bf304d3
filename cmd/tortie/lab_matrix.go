package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"tortie/lab"
)

func labMatrixCommand(o *lab.Options) *cobra.Command {
	var m lab.MatrixOptions
	var tcp, udp []uint
	cmd := &cobra.Command{
		Use:   "matrix",
		Short: "Show who reaches whom, and whether that is what the policies say",
		Long: `Show who reaches whom by ICMP, TCP and UDP over IPv4 and IPv6, as observed, and
whether that is what the policies say. It fails if anything differs.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if m.TCP, err = ports(tcp); err == nil {
				m.UDP, err = ports(udp)
			}
			if err != nil {
				return err
			}
			return inLab(o, func(l *lab.Lab) error {
				matrix, err := l.Matrix(cmd.Context(), m)
				if err != nil {
					return err
				}
				_, _ = fmt.Fprint(cmd.OutOrStdout(), matrix.String())
				if n := len(matrix.Wrong()); n > 0 {
					return fmt.Errorf("%d answers are not as expected", n)
				}
				return nil
			})
		},
	}
	cmd.Flags().StringSliceVar(&m.From, "from", nil, "workloads that ask; none: all")
	cmd.Flags().StringSliceVar(&m.To, "to", nil, "workloads that answer; none: all")
	cmd.Flags().UintSliceVar(&tcp, "tcp", nil, "TCP ports; no port at all: 8080 of TCP and UDP")
	cmd.Flags().UintSliceVar(&udp, "udp", nil, "UDP ports")
	cmd.Flags().DurationVar(&m.Wait, "timeout", time.Second, "for an answer that should not come")
	return cmd
}

func ports(numbers []uint) ([]uint16, error) {
	var list []uint16
	for _, n := range numbers {
		if n == 0 || n > 65535 {
			return nil, fmt.Errorf("port %d: want 1 to 65535", n)
		}
		list = append(list, uint16(n))
	}
	return list, nil
}
