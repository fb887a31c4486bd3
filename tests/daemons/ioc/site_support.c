/* What a site may bring: support for ai and bo records, a driver, a command, a subroutine, a variable.
 * The "hardware" is one number; a bo switches its sign.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <aiRecord.h>
#include <alarm.h>
#include <boRecord.h>
#include <dbAccess.h>
#include <dbDefs.h>
#include <dbScan.h>
#include <devSup.h>
#include <drvSup.h>
#include <epicsExport.h>
#include <errlog.h>
#include <iocsh.h>
#include <recGbl.h>
#include <registryFunction.h>
#include <subRecord.h>

static double level = 1.5;
int siteGain = 2;
static int isNegative;
static int driverIsReady;

static long init_ai(struct dbCommon *common)
{
    aiRecord *record = (aiRecord *)common;

    if (record->inp.type != INST_IO || !driverIsReady) {
        recGblRecordError(S_db_badField, record, "Site Level: INP must be @level");
        return S_db_badField;
    }
    return 0;
}

static long read_ai(aiRecord *record)
{
    if (strcmp(record->inp.value.instio.string, "broken") == 0) {
        recGblSetSevr(record, READ_ALARM, INVALID_ALARM);
        return -1;
    }
    record->val = (isNegative ? -level : level) * siteGain;
    record->udf = 0;
    return 2; /* VAL is set, no conversion */
}

static aidset devAiSite = {{6, NULL, NULL, init_ai, NULL}, read_ai, NULL};
epicsExportAddress(dset, devAiSite);

static long init_bo(struct dbCommon *common)
{
    (void)common;
    return 2;
}

static long write_bo(boRecord *record)
{
    isNegative = record->val;
    return 0;
}

static bodset devBoSite = {{5, NULL, NULL, init_bo, NULL}, write_bo};
epicsExportAddress(dset, devBoSite);

static long init_driver(void)
{
    driverIsReady = 1;
    return 0;
}

static drvet drvSite = {2, NULL, init_driver};
epicsExportAddress(drvet, drvSite);

epicsExportAddress(int, siteGain);

static const iocshArg levelArgument = {"level", iocshArgDouble};
static const iocshArg *const levelArguments[] = {&levelArgument};
static const iocshFuncDef levelCommand = {"siteLevel", 1, levelArguments, "Set the level of the site's device.\n"};

static void callLevel(const iocshArgBuf *arguments)
{
    level = arguments[0].dval;
    printf("the level is %g\n", level);
}

static void siteRegistrar(void)
{
    const char *trace = getenv("SITE_TRACE");

    if (trace != NULL) { /* tells the tests that code of this library ran */
        FILE *file = fopen(trace, "a");

        if (file != NULL) {
            fputs("registrar\n", file);
            fclose(file);
        }
    }
    iocshRegister(&levelCommand, callLevel);
}
epicsExportRegistrar(siteRegistrar);

static long siteDouble(subRecord *record)
{
    record->val = 2 * record->a;
    return 0;
}
epicsRegisterFunction(siteDouble);
