/* exedev worker: Paperclip's plugin worker, JSON-RPC on stdin and stdout. */
#include <unistd.h>

#include "cmd/cmd.h"
#include "rpc/rpc.h"
#include "version.h"

CMD(worker);

int cmd_worker(int argc, char **argv)
{
    static const struct cmd_option options[] = {{0}};
    static const struct cmd_usage usage = {
        .synopsis = "",
        .about = "Serves Paperclip's plugin contract on stdin and stdout, one JSON-RPC message a "
                 "line, until stdin "
                 "ends. Paperclip starts it; by hand it is of use for tests.",
        .examples =
            "  echo '{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"initialize\"}' | exedev worker",
    };

    cmd_parse(argc, argv, options, &usage);
    return rpc_serve(STDIN_FILENO, STDOUT_FILENO, EXEDEV_VERSION);
}
